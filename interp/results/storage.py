r"""Results on disk: one NetCDF file a dataset, written in one step.

NetCDF (through h5netcdf) knows strings and numbers. So nested attributes become JSON text and booleans 0 or 1, and text
with characters that HDF5 would cut or refuse (NUL, lone surrogates) or that garble a terminal (escape sequences)
is stored escaped: a backslash as `\\`, a control character as `\n`, `\x00`, `\ud800`. A string variable that was
escaped says so in its attribute `escaped`, attributes that were are listed in `escaped_attributes`; `load` undoes both.
"""

from __future__ import annotations

import json
import numbers
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.results.provenance import provenance as provenance  # its name here is a documented one

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_OR_BACKSLASH = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]")
_ESCAPED = re.compile(r"\\(\\|n|t|r|x[0-9a-f]{2}|u[0-9a-f]{4})")
_LETTERS = {"\\": r"\\", "\n": r"\n", "\t": r"\t", "\r": r"\r"}
_CHARACTERS = {escaped[1:]: character for character, escaped in _LETTERS.items()}
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")  # an attribute may keep its line breaks


class StorageError(InterpError, ValueError):
    """A result that cannot be written or read back."""


def save(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write `dataset` to `path` as NetCDF; the file appears complete or not at all. Makes missing folders.

    Raises `StorageError` for an attribute that is neither string, number, boolean nor a nest of them, and where the
    disk refuses.

    Examples:
        >>> path = interp.storage.save(results["text_sinks"], "sinks.nc")
        >>> interp.storage.load(path).equals(results["text_sinks"])
        True
    """
    if not isinstance(dataset, xr.Dataset):
        what = (  # type: ignore[unreachable]  # who has no type checker learns it here
            "results of several: save them one by one, as in" if isinstance(dataset, Mapping) else "no dataset: pass"
        )
        raise StorageError(f"save takes one dataset, and this is {what} results['text_sinks'].")
    stored = dataset.copy()
    stored.attrs = _storable_attrs(dataset.attrs, "the dataset")
    for name, variable in stored.variables.items():
        attrs = _storable_attrs(variable.attrs, f"variable {name!r}")
        if variable.dtype.kind in "OUST":
            texts = [str(text) for text in variable.values.flat]
            if any(_UNSAFE.search(text) for text in texts):
                texts, attrs["escaped"] = [escape(text) for text in texts], "backslash"
            stored[name] = (variable.dims, np.array(texts, dtype=object).reshape(variable.shape))
        stored[name].attrs = attrs
    path = Path(path)
    with replacing(path) as draft:
        stored.to_netcdf(draft, engine="h5netcdf")
    return path


def load(path: str | Path) -> xr.Dataset:
    """The dataset that `save` wrote to `path`, in memory. Raises `StorageError` where there is none.

    Examples:
        >>> path = interp.storage.save(results["text_sinks"], "sinks.nc")
        >>> interp.storage.load(path).attrs["title"] == results["text_sinks"].attrs["title"]
        True
    """
    if not Path(path).is_file():
        raise StorageError(
            f"there is no result file {path}; results are written by `interp probe` or interp.storage.save."
        )
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            dataset = file.load().drop_encoding()
    except OSError as error:
        raise StorageError(f"{path} is not a NetCDF result, or is cut short: {error}.") from None
    dataset.attrs = _original_attrs(dataset.attrs)
    for name, variable in dataset.variables.items():
        attrs = _original_attrs(variable.attrs)
        if attrs.pop("escaped", "") == "backslash":
            texts = np.array([unescape(text) for text in variable.values.flat], dtype=object)
            dataset[name] = (variable.dims, texts.reshape(variable.shape))
        dataset[name].attrs = attrs
    return dataset


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write; on success it takes the place of `path`, on an exception it is removed.

    Makes missing folders. Raises `StorageError` where the disk refuses.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            draft.unlink()


def escape(text: str) -> str:
    r"""`text` with backslashes doubled and control characters and lone surrogates written as `\n`, `\x1b`, `\ud800`."""
    return _CONTROL_OR_BACKSLASH.sub(lambda match: _LETTERS.get(match[0]) or _code(match[0]), text)


def unescape(text: str) -> str:
    """The text that `escape` was given."""
    return _ESCAPED.sub(lambda match: _CHARACTERS.get(match[1]) or chr(int(match[1][1:], 16)), text)


def _code(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def _storable_attrs(attrs: Mapping[str, Any], owner: str) -> dict[str, str | int | float]:
    """Attributes as NetCDF takes them; see the module docstring."""
    stored = {name: _storable(value, f"attribute {name!r} of {owner}") for name, value in attrs.items()}
    escaped = [name for name, value in stored.items() if isinstance(value, str) and _UNSTORABLE.search(value)]
    stored |= {name: escape(str(stored[name])) for name in escaped}
    if escaped:
        stored["escaped_attributes"] = " ".join(escaped)
    return stored


def _original_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes the escaping of `_storable_attrs`; JSON stays text."""
    escaped = attrs.get("escaped_attributes", "").split()
    return {
        name: unescape(value) if name in escaped else value
        for name, value in attrs.items()
        if name != "escaped_attributes"
    }


def _storable(value: Any, name: str) -> str | int | float:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, numbers.Number) and not isinstance(value, complex):
        return value  # type: ignore[return-value]  # int, float or numpy's own, which NetCDF takes as they are
    if isinstance(value, (Mapping, list, tuple)):
        try:
            return json.dumps(value, ensure_ascii=False)
        except TypeError:
            pass
    raise StorageError(f"{name} is {value!r}; NetCDF takes strings and numbers, and lists or dicts of them as JSON.")
