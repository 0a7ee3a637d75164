"""Checks on what a figure is given, with errors that say what was expected."""

from __future__ import annotations

import difflib

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.results.many_texts import single


class FigureError(InterpError, ValueError):
    """A dataset that a figure cannot draw, or a part of it that is not there."""


def need(
    ds: xr.Dataset, figure: str, result: str, *variables: str, kind: str = "probe", texts: bool = False
) -> xr.Dataset:
    """`ds` if it holds all `variables`; `FigureError` otherwise, naming the probe (or other kind of thing) whose result
    the figure draws. `texts`: whether it draws a result of several texts as it is."""
    missing = [name for name in variables if name not in ds]
    if missing:
        found = ", ".join(map(str, ds.data_vars)) or "nothing"
        raise FigureError(
            f"figure {figure} draws a result of the {kind} {result!r}, which has {', '.join(missing)}; "
            f"this dataset holds {found}."
        )
    if texts and "text" in ds.dims:
        return ds
    if "text" in ds.dims:
        raise FigureError(
            f"figure {figure} draws one text, and this result holds {ds.sizes['text']}: choose one with .isel(text=0)."
        )
    return single(ds)


def choose(ds: xr.Dataset, dimension: str, value: int) -> int:
    """`value` if it is a coordinate of `dimension`; `FigureError` with the nearest ones otherwise."""
    known = ds[dimension].values.tolist()
    if value not in known:
        near = difflib.get_close_matches(str(value), map(str, known), n=1)
        hint = f"; nearest is {near[0]}" if near else ""
        raise FigureError(f"{dimension} {value!r} is not in this result, which has {span(np.asarray(known))}{hint}.")
    return value


def span(values: np.ndarray) -> str:
    """`0 to 29` for many values, `0, 3` for up to three."""
    return ", ".join(map(str, values)) if len(values) <= 3 else f"{values[0]} to {values[-1]}"
