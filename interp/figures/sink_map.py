"""Where attention goes: position by layer, and each layer's primary sink."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._text import quoted
from interp.figures._theme import AMOUNT, BLUE, ORANGE, decades, finish, row_labels, rows_height, top_down
from interp.results.ragged import mean_of_known

RESULT = "text_sinks"
BINS = 128  # columns of the map; more would be thinner than the pixels they are drawn with
FLOOR = -4.0  # log10 of the share below which colours stop


def sink_map(ds: xr.Dataset) -> go.Figure:
    """Left, the attention that each position receives, averaged over the heads of a layer and over the queries that can
    see it (blank where too few do). Neighbouring positions share a column, which shows the largest of them; rings mark
    each layer's primary sink. Right, that sink's share, with its position and text.

    Args:
        ds: a result of the probe `text_sinks`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.sink_map(results["text_sinks"])
        >>> figure.layout.title.text
        'Attention sinks over 40 tokens'
    """
    ds = need(ds, "sink_map", RESULT, "mean_received", "primary_sink", "primary_sink_share", "token_text")
    received = ds["mean_received"].transpose("layer", "head", "token")
    by_layer = mean_of_known(received.values, axis=1)  # tokens that too few queries see are NaN in every head
    start, strongest, share = _binned(by_layer)
    tokens = [str(text) for text in ds["token_text"].values]
    layers = [f"layer {layer}" for layer in ds["layer"].values]
    height = rows_height(len(layers), 21)

    fig = make_subplots(
        1, 2, shared_yaxes=False, horizontal_spacing=0.02, column_widths=[0.72, 0.28],
        subplot_titles=["attention received by position", "share of the primary sink"],
    )  # fmt: skip
    with np.errstate(divide="ignore"):
        level = np.maximum(np.log10(share), FLOOR).astype("float32")
    label = np.array([quoted(text) for text in tokens], dtype=object)[strongest]
    heat = go.Heatmap(
        z=level,
        x=start,
        y=layers,
        text=np.char.add(np.char.add(strongest.astype(str), " "), label.astype(str)).astype(object),
        customdata=share.astype("float32"),
        coloraxis="coloraxis",
        hovertemplate="%{y}<br>strongest here: position %{text}<br>%{customdata:.3~%} of attention<extra></extra>",
    )
    fig.add_trace(heat, 1, 1)
    sink = ds["primary_sink"].values.astype(int)
    sink_share = ds["primary_sink_share"].values.astype("float32")
    each = {
        "y": layers,
        "customdata": sink_share,
        "hovertext": [
            f"{layer}<br>primary sink: position {at} {quoted(tokens[at])}"
            for layer, at in zip(layers, sink, strict=True)
        ],
        "hovertemplate": "%{hovertext}<br>%{customdata:.1%} of attention<extra></extra>",
    }
    ring = {"symbol": "circle-open", "size": 10, "color": ORANGE, "line": {"width": 2}}
    fig.add_scatter(**each, x=sink, mode="markers", marker=ring, cliponaxis=False, row=1, col=1)
    fig.add_bar(**each, x=sink_share, orientation="h", marker_color=BLUE, row=1, col=2)

    numbers = [str(layer) for layer in ds["layer"].values]
    named = [f"{at} {quoted(tokens[at], 12)}" for at in sink]
    fig.update_yaxes(**top_down(len(layers)))
    fig.update_yaxes(title_text="layer", row=1, col=1, **row_labels(numbers, layers, height))
    fig.update_yaxes(title_text="position and text of the primary sink", side="right", row=1, col=2)
    fig.update_yaxes(row=1, col=2, **row_labels(named, layers, height))
    fig.update_xaxes(
        title_text="token position", showgrid=False, range=[-0.02 * len(tokens), len(tokens)], row=1, col=1
    )
    fig.update_xaxes(title_text="share of attention", tickformat=".0%", rangemode="tozero", row=1, col=2)
    highest = float(np.nanmax(level, initial=FLOOR + 1))
    bar = {
        "title": {"text": "attention received", "side": "top"},
        "orientation": "h",
        "y": -0.1,
        "yanchor": "top",
        "x": 0.36,
        "len": 0.72,
    }
    ticks = decades(FLOOR, 0, "%", scale=100)
    fig.update_layout(
        coloraxis={"colorscale": AMOUNT, "cmin": FLOOR, "cmax": highest, "colorbar": {**bar, **ticks}}, showlegend=False
    )
    return finish(fig, f"Attention sinks over {len(tokens):,} tokens", height + 60).update_layout(margin_b=130)


def _binned(by_layer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First position of each bin `[bin]`, and the strongest position and its share in it `[layer, bin]`."""
    layers, tokens = by_layer.shape
    width = int(np.ceil(tokens / BINS))
    bins = int(np.ceil(tokens / width))
    padded = np.full((layers, bins, width), np.nan)
    padded.reshape(layers, -1)[:, :tokens] = by_layer
    strongest = np.nan_to_num(padded, nan=-1.0).argmax(-1)
    share = np.take_along_axis(padded, strongest[..., None], -1)[..., 0]
    start = np.arange(bins) * width
    return start + (width - 1) / 2, start + strongest, share
