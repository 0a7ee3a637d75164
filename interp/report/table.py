"""One row a layer: the numbers that one looks up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.results.columns import NOTHING, Column

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Table:
    """Columns as (title, what it is, whether its cells are token text) and rows of plain, unescaped text."""

    columns: list[tuple[str, str, bool]]
    rows: list[list[str]]


def layer_table(results: Mapping[str, xr.Dataset], columns_of: Mapping[str, Sequence[Column]]) -> Table:
    """The columns of all results, for all their layers.

    Results that say a token of each layer come first, so that a row begins with a word; the others follow by name.
    """
    layers = sorted(
        {int(layer) for result in results.values() if "layer" in result.dims for layer in result["layer"].values}
    )
    columns = [("layer", "index from 0", False)]
    cells = [{layer: str(layer) for layer in layers}]
    for name in sorted(columns_of, key=lambda name: (not any(c.is_token for c in columns_of[name]), name)):
        for column in columns_of[name]:
            columns.append((column.title, column.about, column.is_token))
            cells.append(dict(zip(results[name]["layer"].values.tolist(), column.cells, strict=True)))
    return Table(columns, [[column.get(layer, NOTHING) for column in cells] for layer in layers])
