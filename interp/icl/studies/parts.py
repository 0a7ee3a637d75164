"""The finished parts of a study: trained weights with their curve, and measured datasets, kept in its folder.

Every file appears complete or not at all, and carries the settings it was made with. So a killed study continues with
the first part that is missing, and a folder never mixes two settings.
"""

from __future__ import annotations

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


@dataclass
class StudyParts:
    """A study's folder of parts; made by `StudyParts.claim`."""

    folder: Path
    """Holds `NAME.nc`, `NAME.safetensors` and, while a part is being trained, `NAME.checkpoint`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds that each part used so far took to make, in this call or in an earlier one."""
    continued: set[str] = field(default_factory=set)
    """Parts whose training was interrupted: their seconds are those since it last went on."""

    @classmethod
    def claim(cls, folder: Path, settings: Mapping[str, Any]) -> StudyParts:
        """The parts of the study with these settings in `folder`, which is made if it is missing.

        Raises InterpError where the folder already holds a study with other settings, or cannot hold one.
        """
        from interp.results.storage import replacing

        path = folder / "settings.json"
        wanted = json.loads(json.dumps(settings))  # as it reads back: tuples become lists
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
            with replacing(path) as draft:
                draft.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
        return cls(parts)

    def measured(self, name: str, settings: Mapping[str, Any], make: Callable[[], xr.Dataset]) -> xr.Dataset:
        """The part called `name`: read from the folder, or made by `make()` and written to it.

        `settings`: plain values; a part that was made with others, or that is damaged, raises InterpError.
        """
        from interp.results.storage import save

        path, wanted = self.folder / f"{name}.nc", json.loads(json.dumps(settings))
        if path.is_file():
            ds, made_with = _read_part(path)
            _refuse_other(made_with, wanted, f"{path}")
        else:
            began = time.perf_counter()
            ds = make()
            ds.attrs |= {"part_settings": json.dumps(wanted), "part_seconds": time.perf_counter() - began}
            save(ds, path)
        self.seconds[name] = float(ds.attrs.pop("part_seconds"))
        if ds.attrs.pop("part_continued", False):
            self.continued.add(name)
        del ds.attrs["part_settings"]
        return ds

    def trained(
        self, name: str, settings: Mapping[str, Any], model: M, fit: Callable[[M, Path], xr.Dataset]
    ) -> tuple[M, xr.Dataset]:
        """`model` with the trained weights of the part called `name`, and the curve of its training.

        Trains by `fit(model, checkpoint)`, where `checkpoint` is a path at which an interrupted training may leave what
        it needs to continue; it is removed when the part is written. `settings` and errors are those of `measured`.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_model, save_model

        from interp.results.storage import replacing

        weights, checkpoint = self.folder / f"{name}.safetensors", self.folder / f"{name}.checkpoint"

        def make() -> xr.Dataset:
            self.folder.mkdir(parents=True, exist_ok=True)
            continued = checkpoint.is_file()
            curve = fit(model, checkpoint)
            with replacing(weights) as draft:
                save_model(model, str(draft))
            return curve.assign_attrs(part_continued=True) if continued else curve

        curve = self.measured(name, settings, make)  # the curve is written last, so a curve implies its weights
        try:
            load_model(model, weights)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise _damaged(weights, error, self.folder / f"{name}.nc") from None
        checkpoint.unlink(missing_ok=True)
        return model, curve


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InterpError(f"{path} is not the settings of a study: {error}; choose another folder.") from None
    if not isinstance(settings, dict):
        raise InterpError(f"{path} is not the settings of a study; choose another folder.")
    return settings


def _read_part(path: Path) -> tuple[xr.Dataset, dict[str, Any]]:
    """A stored part and the settings it was made with."""
    from interp.results.storage import load

    try:
        ds = load(path)
        float(ds.attrs["part_seconds"])
        return ds, dict(json.loads(ds.attrs["part_settings"]))
    except (InterpError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error, path) from None


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
