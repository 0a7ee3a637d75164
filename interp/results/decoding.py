"""NetCDF content taken apart into plain bytes; runs in the process of `interp.files.apart`, and imports no xarray.

First the structure is looked at, without decoding any data: what `interp.results.encoding` never writes (links, groups,
other files' data, virtual data, filters, types besides numbers and text, more data than the file holds) is refused.
"""

from __future__ import annotations

import io
import json
from typing import Any

import h5netcdf
import h5py
import numpy as np
from h5py import h5d, h5l, h5o, h5t

OF_NETCDF = {
    "REFERENCE_LIST", "CLASS", "DIMENSION_LIST", "NAME", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_nc3_strict",
    "_NCProperties",
}  # fmt: skip
"""Attributes by which NetCDF says what its dimensions are."""
WITHOUT_DATA = b"This is a netCDF dimension but not a netCDF variable"


def example() -> bytearray:
    """A small file of ours: decoding it once imports what the libraries import late."""
    content = io.BytesIO()
    with h5netcdf.File(content, "w") as file:
        file.dimensions = {"x": 1, "y": 1}
        for name, kind in {"x": h5py.string_dtype(), "number": np.dtype("f8")}.items():
            variable = file.create_variable(name, ("x", "y")[: 1 + (name == "number")], kind)
            variable[...] = "" if name == "x" else 0.0
            variable.attrs["text"] = "text"
    return bytearray(content.getvalue())


def decode(content: bytearray) -> tuple[dict[str, Any], list[Any]]:
    """What the dataset is, for JSON, and the bytes of each variable in the same order.

    `{"attrs": ..., "variables": [{"name", "dims", "shape", "dtype", "attrs"}]}`; a dtype is numpy's (`<f8`), or `text`
    for values that are a JSON list of strings. Raises ValueError, or what the libraries raise.
    """
    with h5py.File(io.BytesIO(content), "r") as raw:
        _expect_ours(raw)
        with h5netcdf.File(raw, "r", decode_vlen_strings=False) as file:
            variables, pieces = [], []
            for name, variable in file.variables.items():
                dtype, piece = _values(variable)
                about = {"name": name, "dims": list(variable.dimensions), "shape": list(variable.shape)}
                variables.append({**about, "dtype": dtype, "attrs": _attributes(variable.attrs)})
                pieces.append(piece)
            return {"attrs": _attributes(file.attrs), "variables": variables}, pieces


def _expect_ours(file: h5py.File) -> None:
    root = file.id
    _expect_plain_attributes(file)
    for name in root:
        shown = ascii(name.decode("utf-8", "replace"))
        if root.links.get_info(name).type != h5l.TYPE_HARD:
            raise ValueError(f"{shown} in it is a link")
        found = h5o.open(root, name)
        if not isinstance(found, h5d.DatasetID):
            raise ValueError(f"{shown} in it is no variable")
        _expect_own_data(found, shown)
        _expect_plain_attributes(h5py.Dataset(found))


def _expect_own_data(found: h5d.DatasetID, shown: str) -> None:
    made = found.get_create_plist()
    if made.get_external_count() or made.get_layout() == h5d.VIRTUAL:
        raise ValueError(f"{shown} in it lies in other files")
    if made.get_nfilters():
        raise ValueError(f"{shown} in it is compressed or filtered")
    kind = found.get_type()
    text = isinstance(kind, h5t.TypeStringID) and kind.is_variable_str()
    if not text and not isinstance(kind, (h5t.TypeIntegerID, h5t.TypeFloatID)):
        raise ValueError(f"{shown} in it is neither numbers nor text")
    if _without_data(h5py.Dataset(found)):
        return
    says = found.get_space().get_simple_extent_npoints() * kind.get_size()
    if says > found.get_storage_size():
        raise ValueError(f"{shown} in it says that it holds {says:,} bytes, and holds {found.get_storage_size():,}")


def _without_data(dataset: h5py.Dataset) -> bool:
    """Whether it is only the length of a dimension, which NetCDF keeps as data that were never written."""
    name = dataset.attrs.get("NAME", b"")
    return isinstance(name, bytes) and name.startswith(WITHOUT_DATA)


def _expect_plain_attributes(owner: Any) -> None:
    for name in owner.attrs:
        kind = owner.attrs.get_id(name).get_type()
        if name not in OF_NETCDF and not isinstance(kind, (h5t.TypeIntegerID, h5t.TypeFloatID, h5t.TypeStringID)):
            raise ValueError(f"the attribute {name!a} is neither numbers nor text")


def _values(variable: Any) -> tuple[str, Any]:
    values = np.asarray(variable[...])
    if values.dtype.kind != "O":
        return values.dtype.str, np.ascontiguousarray(values).data if values.size else b""
    texts = [text if isinstance(text, str) else text.decode("utf-8") for text in values.flat]
    return "text", json.dumps(texts).encode()


def _attributes(attrs: Any) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in attrs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, np.bytes_)):
        return value.decode("utf-8")
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
