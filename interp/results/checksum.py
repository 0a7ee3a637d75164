"""A checksum of what a dataset says, which is the same before it is stored and after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from interp.results.encoding import storable


def checksum(dataset: xr.Dataset, leave_out: str = "") -> str:
    """SHA-256 of all names, values and attributes, in hexadecimal; without the attribute `leave_out`.

    Raises `StorageError` for an attribute that cannot be stored.
    """
    found = hashlib.sha256()
    attrs = {name: value for name, value in dataset.attrs.items() if name != leave_out}
    found.update(_said(attrs))
    for name, variable in sorted(dataset.variables.items(), key=lambda item: str(item[0])):
        kind, content = _content(np.asarray(variable.values))
        found.update(json.dumps([str(name), [*map(str, variable.dims)], list(variable.shape), kind]).encode())
        found.update(_said(variable.attrs))
        found.update(content)
    return found.hexdigest()


def _content(values: np.ndarray) -> tuple[str, bytes]:
    if values.dtype.kind in "OUST":
        return "text", json.dumps([str(text) for text in values.flat]).encode()
    return values.dtype.str, np.ascontiguousarray(values).tobytes()


def _said(attrs: Mapping[Any, Any]) -> bytes:
    plain = {str(name): storable(value, f"attribute {name!r}") for name, value in attrs.items()}
    return json.dumps(plain, sort_keys=True, default=lambda number: number.item()).encode()
