"""Maps of every head side by side: heads run along each, layers down all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.figures._theme import row_labels, top_down

BAR = {"orientation": "h", "yanchor": "top", "xanchor": "left"}
"""Of a colour bar below the maps."""


def rows_of(layers: Iterable[Any]) -> list[str]:
    """What the rows of such a map are called: 'layer 3'."""
    return [f"layer {layer}" for layer in layers]


def head_axes(
    fig: go.Figure, layers: Iterable[Any], heads: np.ndarray, *, columns: int, height: int, most: int
) -> None:
    """Name the axes of `columns` maps whose rows are `rows_of(layers)`; a map has room for `most` numbers of heads."""
    ticks = {"tickmode": "array", "tickvals": heads[:: int(np.ceil(len(heads) / most))]}
    for column in range(1, columns + 1):
        fig.update_xaxes(title_text="head", showgrid=False, row=1, col=column, **ticks)
    rows = rows_of(layers)
    for column in range(1, columns + 1):  # and no other panel of the figure
        labels = row_labels([str(layer) for layer in layers], rows, height)
        fig.update_yaxes(**top_down(len(rows)), **labels, row=1, col=column)
    fig.update_yaxes(title_text="layer", row=1, col=1)
