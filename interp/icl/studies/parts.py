"""The finished parts of a study: trained weights with their curve, and measured datasets, kept in its folder.

Every file appears complete or not at all. A part carries the settings and the code that made it, and a checksum of what
it says and of its weights. So a killed study continues with the first part that is missing, a folder never mixes two
settings or two versions of the code, and a part that was changed since is not taken for one that was made.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from interp.errors import InterpError

if TYPE_CHECKING:
    import torch
    import xarray as xr

    M = TypeVar("M", bound=torch.nn.Module)

MISSING = object()
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, InterpError)
"""What weights that are not those of a part end in."""


@dataclass
class StudyParts:
    """A study's folder of parts; made by `StudyParts.claim`."""

    folder: Path
    """Holds `NAME.nc`, `NAME.safetensors` and, while a part is being trained, `NAME.checkpoint`."""
    code: str
    """Which code runs, as `interp.icl.studies._code` says it; parts that other code made are refused."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds that each part used so far took to make, in this call or in an earlier one."""
    continued: set[str] = field(default_factory=set)
    """Parts whose training was interrupted: their seconds are those since it last went on."""

    @classmethod
    def claim(cls, folder: Path, settings: Mapping[str, Any], code: str) -> StudyParts:
        """The parts of the study with these settings in `folder`, which is made if it is missing.

        `code` says which code runs. Raises InterpError where the folder already holds a study with other settings or
        of other code, or cannot hold one.
        """
        from interp.files.writing import write

        path = folder / "settings.json"
        wanted = json.loads(json.dumps({**settings, "code": code}))  # as it reads back: tuples become lists
        parts = folder / "parts"
        try:
            taken = parts.exists() and not parts.is_dir()
        except OSError as error:  # a name that is too long
            raise InterpError(f"{folder} cannot be a folder: {error.strerror}; choose another folder.") from None
        if taken:
            raise InterpError(f"{parts} is no folder, and parts are kept there; choose another folder.")
        if path.is_file():
            _refuse_other(_read_settings(path), wanted, str(folder))
        else:
            write(path, json.dumps(wanted, indent=1))
        return cls(parts, code)

    def measured(self, name: str, settings: Mapping[str, Any], make: Callable[[], xr.Dataset]) -> xr.Dataset:
        """The part called `name`: read from the folder, or made by `make()` and written to it.

        `settings`: plain values; a part that was made with others or by other code, or that is damaged or was changed,
        raises InterpError.
        """
        return _without_account(self._kept(name, settings, make))

    def trained(
        self, name: str, settings: Mapping[str, Any], model: M, fit: Callable[[M, Path], xr.Dataset]
    ) -> tuple[M, xr.Dataset]:
        """`model` with the trained weights of the part called `name`, and the curve of its training.

        Trains by `fit(model, checkpoint)`, where `checkpoint` is a path at which an interrupted training may leave what
        it needs to continue; it is removed when the part is written. `settings` and errors are those of `measured`.
        """
        from safetensors.torch import save

        from interp.files.writing import write

        weights, checkpoint = self.folder / f"{name}.safetensors", self.folder / f"{name}.checkpoint"

        def make() -> xr.Dataset:
            self.folder.mkdir(parents=True, exist_ok=True)
            continued = checkpoint.is_file()
            curve = fit(model, checkpoint)
            content = save(_own_weights(model))
            write(weights, content)
            about = {"part_weights": hashlib.sha256(content).hexdigest(), "part_continued": continued}
            return curve.assign_attrs(about)

        curve = self._kept(name, settings, make)  # the curve is written last, so a curve implies its weights
        try:
            _load_weights(model, weights.read_bytes(), curve.attrs["part_weights"])
        except _UNREADABLE as error:
            raise _damaged(weights, error, self.folder / f"{name}.nc") from None
        checkpoint.unlink(missing_ok=True)
        return model, _without_account(curve)

    def _kept(self, name: str, settings: Mapping[str, Any], make: Callable[[], xr.Dataset]) -> xr.Dataset:
        """The part with what it says of itself in attributes that begin with `part_`."""
        from interp.results.checksum import checksum
        from interp.results.storage import save

        path = self.folder / f"{name}.nc"
        wanted = json.loads(json.dumps({**settings, "code": self.code}))
        if path.is_file():
            ds = _read_part(path)
            _refuse_other(json.loads(ds.attrs["part_settings"]), wanted, f"{path}")
        else:
            began = time.perf_counter()
            ds = make()
            ds.attrs |= {"part_settings": json.dumps(wanted), "part_seconds": time.perf_counter() - began}
            ds.attrs["part_checksum"] = checksum(ds)
            save(ds, path)
        self.seconds[name] = float(ds.attrs["part_seconds"])
        if ds.attrs.get("part_continued"):
            self.continued.add(name)
        return ds


def _without_account(ds: xr.Dataset) -> xr.Dataset:
    """What `make` returned: the same without the attributes that a part adds."""
    ds.attrs = {name: value for name, value in ds.attrs.items() if not str(name).startswith("part_")}
    return ds


def _own_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Each weight once, under the first of its names: safetensors stores nothing twice."""
    named = model.state_dict(keep_vars=True)
    first = {id(weight): name for name, weight in reversed(named.items())}
    return {name: named[name].detach().contiguous() for name in sorted(first.values())}


def _load_weights(model: torch.nn.Module, content: bytes, checksum: str) -> None:
    """Raises ValueError for other weights than those of the checksum, or what the libraries raise."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError("these are not the weights that were written")
    try:
        weights = load(content)
    except SafetensorError as error:
        raise ValueError(f"{error}") from None
    if weights.keys() != _own_weights(model).keys():
        raise ValueError("the weights are of another model")
    model.load_state_dict(weights, strict=False)  # the other names of a weight are missing


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InterpError(f"{path} is not the settings of a study: {error}; choose another folder.") from None
    if not isinstance(settings, dict):
        raise InterpError(f"{path} is not the settings of a study; choose another folder.")
    return settings


def _read_part(path: Path) -> xr.Dataset:
    from interp.results.checksum import checksum
    from interp.results.storage import load

    try:
        ds = load(path)
        float(ds.attrs["part_seconds"])
        dict(json.loads(ds.attrs["part_settings"]))
        if ds.attrs["part_checksum"] != checksum(ds, leave_out="part_checksum"):
            raise ValueError("its numbers are not those that were made")
    except (InterpError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error, path) from None
    return ds


def _damaged(path: Path, error: Exception, remove: Path) -> InterpError:
    return InterpError(f"{path} is no finished part of a study ({error}); remove {remove}, and it is made again.")


def _refuse_other(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """One sentence that names each setting that differs."""
    found, wanted = _flat(found), _flat(wanted)
    differing = [key for key in {**found, **wanted} if found.get(key, MISSING) != wanted.get(key, MISSING)]
    if differing:
        had, asked = (
            ", ".join(f"{key}={settings.get(key, 'unset')!r}" for key in differing) for settings in (found, wanted)
        )
        raise InterpError(f"{where} was made with {had}, and {asked} is asked for; choose another folder for it.")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings by dotted names."""
    inner = {key: _flat(value) for key, value in settings.items() if isinstance(value, Mapping)}
    outer = {key: value for key, value in settings.items() if key not in inner}
    return outer | {f"{key}.{name}": value for key, values in inner.items() for name, value in values.items()}
