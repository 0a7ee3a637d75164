"""Figures of sinks that depend on what is chosen on the page: the sink rate at an ε, the heads that look at one token,
and what leaves the blocks. Each draws a result of the probe `text_sinks`.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.figures._text import quoted
from interp.figures._theme import AMOUNT, BLUE, GREY, ORANGE, finish, row_labels, rows_height, top_down


def sink_rate(ds: xr.Dataset, epsilon: float) -> go.Figure:
    """How many of each layer's heads give the token k more than `epsilon` of their attention."""
    rates = 100 * (ds["alpha_first"] > epsilon).mean("head")
    fig = go.Figure(go.Bar(x=rates["layer"].values, y=rates.values.astype("float32"), marker_color=BLUE))
    fig.update_xaxes(title_text="layer").update_yaxes(title_text="heads above ε (%)", range=[0, 100])
    return finish(fig, f"Heads that give token {int(ds.attrs['k'])} more than {epsilon:.0%} of their attention", 320)


def token_heads(ds: xr.Dataset, token: int) -> go.Figure:
    """The attention that one token receives from every head, mean over the queries that can see it."""
    received = 100 * ds["mean_received"].isel(token=token).transpose("layer", "head").values.astype("float32")
    layers = [f"layer {layer}" for layer in ds["layer"].values]
    height = rows_height(len(layers), 16)
    fig = go.Figure(
        go.Heatmap(
            z=received, x=ds["head"].values, y=layers, coloraxis="coloraxis", xgap=1, ygap=1,
            hovertemplate="%{y} · head %{x}<br>%{z:.3~g} % of its attention<extra></extra>",
        )
    )  # fmt: skip
    numbers = [str(layer) for layer in ds["layer"].values]
    fig.update_xaxes(title_text="head", showgrid=False, dtick=max(1, ds.sizes["head"] // 16))
    fig.update_yaxes(title_text="layer", **top_down(len(layers)), **row_labels(numbers, layers, height))
    fig.update_layout(coloraxis={"colorscale": AMOUNT, "cmin": 0, "colorbar": {"title": {"text": "attention (%)"}}})
    named = quoted(str(ds["token_text"].values[token]))
    return finish(fig, f"Attention that token {token} {named} receives from each head", height)


def massive_activations(ds: xr.Dataset) -> go.Figure:
    """The largest and the median |x| that leave each block; orange where the largest is a massive activation."""
    layers = ds["layer"].values
    largest, median = (ds[name].values.astype("float32") for name in ("residual_max", "residual_median"))
    massive = ds["massive"].values.astype(bool)
    tokens, channels = ds["massive_position"].values, ds["massive_channel"].values
    where = [
        f"token {token} {quoted(str(ds['token_text'].values[token]))}, channel {channel}"
        for token, channel in zip(tokens, channels, strict=True)
    ]
    fig = go.Figure()
    fig.add_scatter(
        x=layers, y=largest, mode="lines+markers", name="largest (orange: massive)", text=where,
        line={"color": BLUE, "width": 1}, marker={"color": np.where(massive, ORANGE, BLUE).tolist(), "size": 8},
        hovertemplate="layer %{x}: %{y:,.4~g}<br>%{text}<extra></extra>",
    )  # fmt: skip
    fig.add_scatter(
        x=layers, y=median, mode="lines", name="median", line={"color": GREY, "dash": "dash"},
        hovertemplate="layer %{x}: median %{y:.3~g}<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(title_text="layer")
    fig.update_yaxes(title_text="|x| of the block's output", type="log", exponentformat="power", dtick=1)
    return finish(fig, "What leaves each block", 380)
