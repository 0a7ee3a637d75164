"""Heat maps of channel energy: how unevenly keys and values spread over their channels."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._theme import AMOUNT, decades, finish, row_labels, rows_height, top_down

RESULT = "channel_imbalance"
PANELS = {"key_pre_rotary": "keys before rotary", "key": "keys", "value": "values"}
FLOOR = -1.0  # log10; weaker channels are drawn as a tenth of the median so that the strong ones keep the colours


def channel_imbalance(ds: xr.Dataset) -> go.Figure:
    """Energy (mean square over tokens) of every channel, relative to the median channel of its head, on one logarithmic
    colour scale for keys and values. One row is one key/value head; bright stripes are channels that carry a head's
    magnitude. Rotary embedding mixes channels in pairs, so the stripes of keys before and after it differ.

    Args:
        ds: a result of the probe `channel_imbalance`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.channel_imbalance(results["channel_imbalance"])
        >>> figure.layout.title.text
        'Channel energy of keys and values'
    """
    ds = need(ds, "channel_imbalance", RESULT, "energy")
    energy = ds["energy"].transpose("tensor", "layer", "kv_head", "channel")
    median = energy.median("channel")
    relative = (energy / median.where(median > 0)).astype("float32")
    tensors = [tensor for tensor in PANELS if tensor in ds["tensor"].values]
    rows = [f"layer {layer} · kv head {head}" for layer in ds["layer"].values for head in ds["kv_head"].values]
    height = rows_height(len(rows), 8)

    fig = make_subplots(
        1,
        len(tensors),
        shared_yaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=[_title(t, tensors) for t in tensors],
    )
    strongest = 1.0
    for column, tensor in enumerate(tensors, start=1):
        ratio = relative.sel(tensor=tensor).values.reshape(len(rows), -1)
        with np.errstate(divide="ignore"):
            level = np.log10(ratio)
        strongest = max(strongest, float(np.nanmax(level, initial=1.0)))
        heat = go.Heatmap(
            z=np.maximum(level, FLOOR),
            x=ds["channel"].values,
            y=rows,
            customdata=ratio,
            coloraxis="coloraxis",
            hovertemplate="%{y}<br>channel %{x}<br>%{customdata:.3~g}× the median<extra>" + PANELS[tensor] + "</extra>",
        )
        fig.add_trace(heat, 1, column)
        fig.update_xaxes(title_text="channel", showgrid=False, row=1, col=column)
    middle = rows[ds.sizes["kv_head"] // 2 :: ds.sizes["kv_head"]]
    labels = row_labels([str(layer) for layer in ds["layer"].values], middle, height)
    fig.update_yaxes(**top_down(len(rows)), **labels)
    fig.update_yaxes(title_text=f"layer ({ds.sizes['kv_head']} key/value heads each)", row=1, col=1)
    ticks = decades(FLOOR, strongest, "×")
    fig.update_layout(
        coloraxis={
            "colorscale": AMOUNT,
            "cmin": FLOOR,
            "cmax": strongest,
            "colorbar": {"title": {"text": "energy /<br>median"}, **ticks},
        }
    )
    return finish(fig, "Channel energy of keys and values", height)


def _title(tensor: str, tensors: list[str]) -> str:
    return "keys after rotary" if tensor == "key" and "key_pre_rotary" in tensors else PANELS[tensor]
