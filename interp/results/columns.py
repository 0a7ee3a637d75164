"""Columns of a table with one row a layer: what a result says about each of its layers, as plain text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

NOTHING = "–"
"""The cell of a layer that has no value."""


@dataclass(frozen=True)
class Column:
    """One cell for each layer of a result, in the result's order."""

    title: str
    about: str
    """What it is, in a few words that stand below the table."""
    cells: list[str]
    """Plain text; whoever shows it escapes it."""
    is_token: bool = False
    """Whether the cells are token text, which is shown as it is, in quotes."""


def layer_columns(result: xr.Dataset) -> list[Column]:
    """A column for every variable of `result` that has one value a layer, in the order of the variables.

    Titles are the variables' names, what they are their descriptions and units; text counts as token text.
    """
    return [_column(str(name), v) for name, v in result.data_vars.items() if v.dims == ("layer",)]


def _column(name: str, variable: xr.DataArray) -> Column:
    units = str(variable.attrs.get("units", "1"))
    about = str(variable.attrs.get("description", name)) + (f", in {units}" if units not in ("1", "text") else "")
    if variable.dtype.kind in "OUST":
        return Column(name.replace("_", " "), about, list(map(str, variable.values)), is_token=True)
    cells = [NOTHING if x != x else number(x) for x in variable.values.tolist()]
    return Column(name.replace("_", " "), about, cells)


def number(x: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"
