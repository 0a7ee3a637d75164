"""Which heads look at some part of an image."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from interp.figures._head_maps import rows_of
from interp.figures._need import need
from interp.figures._patches import chosen_patches
from interp.figures._theme import AMOUNT, finish, row_labels, rows_height, top_down

RESULT = "image_attention"


def patch_heads(ds: xr.Dataset, patches: Sequence[int] | None = None) -> go.Figure:
    """How much of the attention of each head goes to some tokens of an image, averaged over the tokens of text behind
    it.

    Args:
        ds: a result of the probe `image_attention`.
        patches: positions of tokens of an image; None: all of them.

    Raises:
        FigureError: for another dataset, or a token that is no part of an image.

    Examples:
        >>> figure = interp.figures.patch_heads(results["image_attention"])
        >>> figure.layout.title.text
        'Which heads look at the image'
    """
    ds = need(ds, "patch_heads", RESULT, "received", "modality")
    which, called = chosen_patches(ds, patches)
    share = 100 * ds["received"].transpose("layer", "head", "token").values[..., which].sum(-1)
    rows = rows_of(ds["layer"].values)
    height = rows_height(len(rows), 14)
    fig = go.Figure(
        go.Heatmap(
            z=share.astype("float32"), x=ds["head"].values, y=rows, coloraxis="coloraxis", xgap=1, ygap=1,
            hovertemplate="%{y} · head %{x}<br>%{z:.3~g} % of its attention<extra></extra>",
        )
    )  # fmt: skip
    labels = row_labels([str(layer) for layer in ds["layer"].values], rows, height)
    fig.update_xaxes(title_text="head", showgrid=False, dtick=max(1, ds.sizes["head"] // 16))
    fig.update_yaxes(title_text="layer", **top_down(len(rows)), **labels)
    fig.update_layout(coloraxis={"colorscale": AMOUNT, "cmin": 0, "colorbar": {"title": {"text": "attention (%)"}}})
    return finish(fig, f"Which heads look at {called}", height)
