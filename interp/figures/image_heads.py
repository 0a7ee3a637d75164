"""Which heads look at the image, and at more of it than its sinks."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._head_maps import head_axes, rows_of
from interp.figures._need import need
from interp.figures._theme import AMOUNT, finish, rows_height

RESULT = "visual_sinks"
LEAST = 1e-4
"""Share of attention to the image below which nothing is said of its parts."""
PANELS = (
    ("visual_share", "attention to the image"),
    ("visual_sink_share", "of that, to its sinks"),
    ("image_centric", "image-centric rows"),
)


def image_heads(ds: xr.Dataset) -> go.Figure:
    """Every head of every layer, of the text behind the image. Left, the share of its attention that goes to the image;
    middle, how much of that share goes to tokens that are sinks; right, how many of its rows are image-centric, which
    look at the image and not just at its sinks. Gray: it gives the image no attention to speak of, or no text follows.

    Args:
        ds: a result of the probe `visual_sinks`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.image_heads(results["visual_sinks"])
        >>> figure.layout.title.text
        'Heads that look at the image'
    """
    ds = need(ds, "image_heads", RESULT, *(name for name, _ in PANELS))
    share, to_sinks, centric = (ds[name].transpose("layer", "head").values.astype("float32") for name, _ in PANELS)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_that = np.where(share > LEAST, to_sinks / share, np.nan).astype("float32")
    layers, heads = ds["layer"].values, ds["head"].values
    height = rows_height(len(layers), 17)
    fig = make_subplots(1, 3, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[title for _, title in PANELS])
    for column, z in enumerate((share, of_that, centric), start=1):
        fig.add_heatmap(
            z=100 * z, x=heads, y=rows_of(layers), coloraxis="coloraxis", xgap=1, ygap=1, hoverongaps=False,
            hovertemplate="%{y} · head %{x}<br>%{z:.3~g} %<extra></extra>", row=1, col=column,
        )  # fmt: skip
    head_axes(fig, layers, heads, columns=3, height=height, most=12)
    fig.update_layout(
        coloraxis={"colorscale": AMOUNT, "cmin": 0, "cmax": 100, "colorbar": {"title": {"text": "per cent"}}},
    )
    return finish(fig, "Heads that look at the image", height).update_layout(plot_bgcolor="#e3e5e8")
