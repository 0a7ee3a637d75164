r"""A dataset as the bytes of a NetCDF file, and back from what was in it.

NetCDF (through h5netcdf) knows strings and numbers. So nested attributes become JSON text and booleans 0 or 1, and text
with characters that HDF5 would cut or refuse (NUL, lone surrogates) or that garble a terminal (escape sequences)
is stored escaped: a backslash as `\\`, a control character as `\n`, `\x00`, `\ud800`. A string variable that was
escaped says so in its attribute `escaped`, attributes that were are listed in `escaped_attributes`.

Attributes whose names other readers take for instructions (`scale_factor`, `_FillValue`, `coordinates`, `units` in days
since a date) would change numbers there. They are set aside as JSON in `attributes_set_aside`. Values of types that
NetCDF has not are stored as whole numbers and say what they are in the attribute `dtype`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import StorageError

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_OR_BACKSLASH = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]")
_ESCAPED = re.compile(r"\\(\\|n|t|r|x[0-9a-f]{2}|u[0-9a-f]{4})")
_LETTERS = {"\\": r"\\", "\n": r"\n", "\t": r"\t", "\r": r"\r"}
_CHARACTERS = {escaped[1:]: character for character, escaped in _LETTERS.items()}
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")  # an attribute may keep its line breaks
_VARIABLE = re.compile(r"(?!_nc4_non_coord_)\w[^/\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
_PLAIN_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
_INSTRUCTIONS = {
    "NAME", "CLASS", "REFERENCE_LIST", "DIMENSION_LIST", "DIMENSION_LABELS",  # HDF5's
    "scale_factor", "add_offset", "missing_value", "valid_range", "valid_min", "valid_max", "calendar", "coordinates",
    "dtype", "grid_mapping", "bounds",
}  # fmt: skip
"""Names that mean something to readers of NetCDF; so do all that begin with `_`."""
_OURS = ("escaped", "escaped_attributes", "attributes_set_aside", "coordinate_names", "stored_by")
_STORED = "biuf"  # kinds of numpy that NetCDF has; half and long double floats are refused
_TIME = re.compile(r"[<>][mM]8\[\w+\]")  # stored as its whole numbers
STORED_BY = "interp, with a checksum after the last byte of HDF5"


def encoded(dataset: xr.Dataset) -> bytes:
    """The NetCDF file of a dataset. Raises `StorageError` for names, values or attributes that it cannot hold."""
    import h5netcdf
    import h5py

    _expect_names([*dataset.sizes, *dataset.variables])
    aside = _storable_attrs(dataset.attrs, "the dataset")
    coords = [str(name) for name in dataset.coords]
    aside |= {"coordinate_names": json.dumps(coords), "stored_by": STORED_BY}
    others = [name for name in coords if name not in dataset.sizes and " " not in name]
    content = io.BytesIO()
    with h5netcdf.File(content, "w") as file:
        file.dimensions = {str(name): size for name, size in dataset.sizes.items()}
        for name, variable in dataset.variables.items():
            values, about = _storable_values(variable, str(name))
            kind = h5py.string_dtype() if values.dtype.kind == "O" else values.dtype
            stored = file.create_variable(str(name), tuple(map(str, variable.dims)), kind)
            if values.size:
                stored[...] = values
            stored.attrs.update(about)
        file.attrs.update(aside)
        if others:
            file.attrs["coordinates"] = " ".join(others)  # how other readers know them
    return content.getvalue()


def dataset_of(about: Mapping[str, Any], pieces: list[bytearray], *, ours: bool) -> xr.Dataset:
    """The dataset that `interp.results.decoding` took apart.

    ours: whether `encoded` made it; what something else wrote is read as NetCDF's conventions say.
    Raises ValueError, TypeError or KeyError, or what xarray raises, where it is none.
    """
    raw = xr.Dataset(
        {
            variable["name"]: (variable["dims"], _array(piece, variable["dtype"], variable["shape"]), variable["attrs"])
            for variable, piece in zip(about["variables"], pieces, strict=True)
        },
        attrs=about["attrs"],
    )
    if not ours:
        raw = xr.decode_cf(raw).load().drop_encoding()
    coords = [*json.loads(raw.attrs.get("coordinate_names", "[]")), *raw.coords]
    attrs = {name: value for name, value in raw.attrs.items() if not (ours and name == "coordinates")}
    variables = {name: _original(variable, ours) for name, variable in raw.variables.items()}
    return xr.Dataset(variables, attrs=_original_attrs(attrs)).set_coords(coords)


def escape(text: str) -> str:
    r"""`text` with backslashes doubled and control characters and lone surrogates written as `\n`, `\x1b`, `\ud800`."""
    return _CONTROL_OR_BACKSLASH.sub(lambda match: _LETTERS.get(match[0]) or _code(match[0]), text)


def unescape(text: str) -> str:
    """The text that `escape` was given."""
    return _ESCAPED.sub(lambda match: _CHARACTERS.get(match[1]) or chr(int(match[1][1:], 16)), text)


def _code(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def _expect_names(names: list[Hashable]) -> None:
    for name in names:
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name) or name != name.strip():
            raise StorageError(
                f"{name!r} cannot be the name of a variable or a dimension in NetCDF: it is text, begins with a "
                "letter or a digit, and has no slash and no control character."
            )


def _storable_values(variable: xr.Variable, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The values as NetCDF takes them, and the variable's attributes with what `dataset_of` has to know."""
    values, attrs = np.asarray(variable.values), _storable_attrs(variable.attrs, f"variable {name!r}")
    if values.dtype.kind in "OUST":
        texts = [str(text) for text in values.flat]
        if any(_UNSAFE.search(text) for text in texts):
            texts, attrs["escaped"] = [escape(text) for text in texts], "backslash"
        return np.array(texts, dtype=object).reshape(values.shape), attrs
    if values.dtype.kind == "b":
        return values.astype("i1"), {**attrs, "dtype": "bool"}
    if values.dtype.kind in "mM":
        return values.view("i8"), {**attrs, "dtype": values.dtype.str}
    if values.dtype.kind not in _STORED or values.dtype.itemsize not in (1, 2, 4, 8) or values.dtype == np.float16:
        raise StorageError(
            f"variable {name!r} has the type {values.dtype}; NetCDF takes text, whole numbers, float32 and float64."
        )
    return values, attrs


def _original(variable: xr.Variable, ours: bool) -> xr.Variable:
    """Undoes what `_storable_values` did."""
    values: Any = variable.values
    attrs = dict(variable.attrs)
    kind = str(attrs.pop("dtype", "")) if ours else ""
    if kind == "bool":
        values = values.astype(bool)
    elif kind:
        if not _TIME.fullmatch(kind):
            raise ValueError(f"values of type {kind!r}")
        values = values.view(kind)
    if attrs.get("escaped") == "backslash":
        values = np.array([unescape(text) for text in values.flat], dtype=object).reshape(values.shape)
    return xr.Variable(variable.dims, values, _original_attrs(attrs))


def _array(piece: bytearray, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype == "text":
        texts = json.loads(piece)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("text that is no text")
        return np.array(texts, dtype=object).reshape(shape)
    if not re.fullmatch(r"[<>|][iuf][1248]", dtype):
        raise ValueError(f"values of type {dtype}")
    return np.frombuffer(piece, dtype).reshape(shape)


def _storable_attrs(attrs: Mapping[Any, Any], owner: str) -> dict[str, str | int | float]:
    """Attributes as NetCDF takes them; see the module docstring."""
    stored, aside = {}, {}
    for name, value in attrs.items():
        plain = storable(value, f"attribute {name!r} of {owner}")
        if _stays(name, plain):
            stored[name] = plain
        else:
            aside[str(name)] = plain.item() if isinstance(plain, np.generic) else plain
    escaped = [name for name, value in stored.items() if isinstance(value, str) and _UNSTORABLE.search(value)]
    stored |= {name: escape(str(stored[name])) for name in escaped}
    if escaped:
        stored["escaped_attributes"] = " ".join(escaped)
    if aside:
        stored["attributes_set_aside"] = json.dumps(aside)
    return stored


def _stays(name: Any, value: Any) -> bool:
    """Whether an attribute can be stored under its own name."""
    if name in _INSTRUCTIONS or name in _OURS or not _PLAIN_NAME.fullmatch(str(name)):
        return False
    if isinstance(value, int) and value.bit_length() > 63:
        return False
    return not (name == "units" and isinstance(value, str) and " since " in value)


def _original_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes what `_storable_attrs` did; JSON stays text."""
    escaped = str(attrs.get("escaped_attributes", "")).split()
    plain = {
        name: unescape(value) if name in escaped and isinstance(value, str) else value
        for name, value in attrs.items()
        if name not in _OURS
    }
    return plain | dict(json.loads(attrs.get("attributes_set_aside", "{}")))


def storable(value: Any, name: str) -> str | int | float:
    """An attribute's value as NetCDF has it. Raises `StorageError`, which calls the attribute `name`."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (int, float, np.integer, np.floating)):
        return value  # type: ignore[return-value]  # numpy's own are taken as they are
    if isinstance(value, (Mapping, list, tuple)):
        try:
            return json.dumps(value, ensure_ascii=False)
        except TypeError:
            pass
    raise StorageError(f"{name} is {value!r}; NetCDF takes strings and numbers, and lists or dicts of them as JSON.")
