"""Magnitude over tokens and channels as two surfaces, keys beside values."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import choose, need
from interp.figures._theme import AMOUNT, finish

RESULT = "channel_imbalance"


def channel_surface(ds: xr.Dataset, layer: int | None = None, kv_head: int | None = None) -> go.Figure:
    """Magnitude of the keys and of the values of one head, over tokens and channels, on the same scale. By default the
    head whose keys have the largest maximum-to-median ratio. Ridges along the tokens are channels that stay large.

    Args:
        ds: a result of the probe `channel_imbalance`.
        layer, kv_head: coordinates of the head to draw.

    Raises:
        FigureError: for another dataset or a head that it does not hold.

    Examples:
        >>> figure = interp.figures.channel_surface(results["channel_imbalance"], layer=0, kv_head=1)
        >>> figure.layout.title.text
        'Magnitude over tokens and channels, layer 0, key/value head 1'
    """
    ds = need(ds, "channel_surface", RESULT, "magnitude", "max_over_median")
    ratio = ds["max_over_median"].sel(tensor="key").transpose("layer", "kv_head")
    wanted = ratio
    if layer is not None:
        wanted = wanted.sel(layer=[choose(ds, "layer", layer)])
    if kv_head is not None:
        wanted = wanted.sel(kv_head=[choose(ds, "kv_head", kv_head)])
    at = np.unravel_index(int(np.nanargmax(wanted.values)), wanted.shape)
    layer, kv_head = int(wanted["layer"][at[0]]), int(wanted["kv_head"][at[1]])

    magnitude = ds["magnitude"].sel(layer=layer, kv_head=kv_head).transpose("tensor", "token_bin", "channel")
    top = float(magnitude.sel(tensor=["key", "value"]).max())
    fig = make_subplots(
        1,
        2,
        specs=[[{"type": "scene"}, {"type": "scene"}]],
        horizontal_spacing=0.01,
        subplot_titles=[_panel_title(ds, tensor, layer, kv_head) for tensor in ("key", "value")],
    )
    for column, (tensor, letter) in enumerate({"key": "K", "value": "V"}.items(), start=1):
        surface = go.Surface(
            z=magnitude.sel(tensor=tensor).values.astype("float32"),
            x=ds["channel"].values,
            y=ds["token_bin"].values,
            coloraxis="coloraxis",
            hovertemplate="token %{y}<br>channel %{x}<br>|" + letter + "| %{z:.3~g}<extra></extra>",
        )
        fig.add_trace(surface, 1, column)
    fig.update_scenes(
        xaxis={"title": {"text": "channel"}},
        yaxis={"title": {"text": "token"}},
        zaxis={"title": {"text": "mean |x|"}, "range": [0, top], "nticks": 5},
        aspectratio={"x": 1, "y": 1.2, "z": 0.9},
        camera={"eye": {"x": 1.75, "y": -1.6, "z": 0.95}, "center": {"x": -0.08, "y": -0.08, "z": -0.15}},
    )
    fig.update_layout(
        coloraxis={"colorscale": AMOUNT, "cmin": 0, "cmax": top, "colorbar": {"title": {"text": "mean |x|"}}},
        margin={"l": 10, "r": 10, "b": 10},
    )
    return finish(fig, f"Magnitude over tokens and channels, layer {layer}, key/value head {kv_head}", 500)


def _panel_title(ds: xr.Dataset, tensor: str, layer: int, kv_head: int) -> str:
    ratio = float(ds["max_over_median"].sel(tensor=tensor, layer=layer, kv_head=kv_head))
    letter = {"key": "keys |K|", "value": "values |V|"}[tensor]
    return f"{letter}: strongest channel {ratio:,.3g}× the median energy"
