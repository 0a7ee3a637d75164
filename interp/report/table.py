"""One row a layer: the numbers that one looks up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Table:
    """Columns as (title, what it is, whether its cells are token text) and rows of plain, unescaped text."""

    columns: list[tuple[str, str, bool]]
    rows: list[list[str]]


def layer_table(results: Mapping[str, xr.Dataset]) -> Table:
    """The columns that the results at hand can fill, for all their layers."""
    layers = sorted(
        {int(layer) for result in results.values() if "layer" in result.dims for layer in result["layer"].values}
    )
    columns: list[tuple[str, str, bool]] = [("layer", "index from 0", False)]
    cells: list[dict[int, str]] = [{layer: str(layer) for layer in layers}]
    for name, add in {"text_sinks": _sinks, "attention_rank": _ranks, "channel_imbalance": _imbalances}.items():
        if name in results:
            for (title, about, is_token), values in add(results[name]):
                columns.append((title, about, is_token))
                cells.append(dict(zip(results[name]["layer"].values.tolist(), values, strict=True)))
    return Table(columns, [[column.get(layer, "–") for column in cells] for layer in layers])


Column = tuple[tuple[str, str, bool], list[str]]


def _sinks(ds: xr.Dataset) -> list[Column]:
    position = ds["primary_sink"].values.astype(int)
    columns: list[Column] = [
        (("sink at", "position of the primary sink, from 0", False), [f"{at:,}" for at in position]),
        (("sink token", "its text", True), [str(ds["token_text"].values[at]) for at in position]),
        (
            ("share", "attention it receives, mean over heads", False),
            [f"{x:.1%}" for x in ds["primary_sink_share"].values],
        ),
    ]
    if "psi" in ds:
        about = "largest over median magnitude of the block's output"
        columns.append((("Ψ", about, False), [_number(x) for x in ds["psi"].values]))
    return columns


def _ranks(ds: xr.Dataset) -> list[Column]:
    k = ds.sizes["component"]
    median = np.median(ds["rank90"].transpose("layer", "head").values, axis=1)
    about = "components that hold 90 % of a pattern's energy, median over heads"
    return [(("rank 90 %", about, False), [f">{k}" if rank > k else f"{rank:g}" for rank in median])]


def _imbalances(ds: xr.Dataset) -> list[Column]:
    columns: list[Column] = []
    for tensor, title in (("key", "key imbalance"), ("value", "value imbalance")):
        ratio = ds["max_over_median"].sel(tensor=tensor).median("kv_head").values
        about = f"strongest over median channel energy of {tensor}s, median over key/value heads"
        columns.append(((title, about, False), [f"{_number(x)}×" for x in ratio]))
    return columns


def _number(x: Any) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
