"""Layers of unequal shape as one array: models whose layers differ in heads or head dim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def stacked(layers: Sequence[Any], dtype: Any = None) -> np.ndarray:
    """Arrays of the same dimensions as one array with an axis in front.

    Where they differ in size (MiMo-V2, Gemma 4) the narrower ones are filled up with NaN, and integers become floats.
    """
    arrays = [np.asarray(layer) for layer in layers]
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays) if dtype is None else np.stack(arrays).astype(dtype)
    shape = np.max([array.shape for array in arrays], axis=0)
    wide = np.result_type(*arrays, np.float32) if dtype is None else np.result_type(dtype, np.float32)
    made = np.full((len(arrays), *shape), np.nan, wide)
    for row, array in zip(made, arrays, strict=True):
        row[tuple(slice(n) for n in array.shape)] = array
    return made


def mean_of_known(values: Any, axis: int | tuple[int, ...]) -> np.ndarray:
    """`np.nanmean`, which says NaN where nothing is known without a warning: who silences one silences all threads."""
    array = np.asarray(values)
    known = ~np.isnan(array)
    total: np.ndarray = np.where(known, array, 0).sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / known.sum(axis)).astype(total.dtype)
