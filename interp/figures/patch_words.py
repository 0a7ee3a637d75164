"""Which tokens of text look at some part of an image."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from interp.figures._need import need
from interp.figures._patches import chosen_patches, given_attention
from interp.figures._text import escape, quoted
from interp.figures._theme import BLUE, finish

RESULT = "image_attention"
LABEL = 14
"""Characters of a token below its bar."""


def patch_words(ds: xr.Dataset, patches: Sequence[int] | None = None, layer: int | None = None) -> go.Figure:
    """How much of its attention each token of text behind an image gives to some tokens of the image, averaged over
    layers unless one is chosen.

    Args:
        ds: a result of the probe `image_attention`.
        patches: positions of tokens of an image; None: all of them.
        layer: a layer; None: the mean over all.

    Raises:
        FigureError: for another dataset, a layer that it does not hold, or a token that is no part of an image.

    Examples:
        >>> figure = interp.figures.patch_words(results["image_attention"], patches=[2])
        >>> figure.layout.title.text
        'Which tokens look at patch 2, mean of 3 layers'
    """
    ds = need(ds, "patch_words", RESULT, "attention", "modality", "query_text")
    which, called = chosen_patches(ds, patches)
    part, where = given_attention(ds, layer)
    share = 100 * part.values[:, which].sum(-1)
    tokens, positions = [str(text) for text in ds["query_text"].values], ds["query"].values
    fig = go.Figure(
        go.Bar(
            x=positions, y=share.astype("float32"), marker_color=BLUE, hovertext=[quoted(text, 60) for text in tokens],
            hovertemplate="%{hovertext}<br>position %{x}<br>%{y:.3~g} % of its attention<extra></extra>",
        )
    )  # fmt: skip
    step = -(-len(tokens) // 40)
    fig.update_xaxes(
        title_text="token", showgrid=False, tickmode="array", tickvals=positions[::step].tolist(), tickangle=-60,
        ticktext=[escape(text.strip() or text, LABEL) for text in tokens[::step]],
    )  # fmt: skip
    fig.update_yaxes(title_text=f"attention to {called} (%)", rangemode="tozero")
    return finish(fig, f"Which tokens look at {called}, {where}", 380)
