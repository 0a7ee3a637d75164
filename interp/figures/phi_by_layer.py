"""φ of every token in every layer: where sinks arise, and which tokens they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._text import quoted
from interp.figures._theme import finish, row_labels, rows_height, top_down

RESULT = "visual_sinks"
BELOW, ABOVE = ("#f4f7fb", "#7fa8d1"), ("#f9a03f", "#7a0f2b")
"""Colours from nothing to the threshold, and from there on."""
UNKNOWN = "#d3d6da"
LABELS = 36
"""Tokens of text that are named at most."""


def phi_by_layer(ds: xr.Dataset) -> go.Figure:
    """φ of each token where it enters each layer: how far the sink channels stick out of it. Blue tokens lie below the
    threshold; from there on, orange to red, a token is a sink. Left the image, its tokens in the order of the text,
    which is row by row; lines part images and tiles. Right the tokens of text and separators. In gray layers no channel
    stands out, so that no token could be a sink.

    Args:
        ds: a result of the probe `visual_sinks`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.phi_by_layer(results["visual_sinks"])
        >>> figure.layout.title.text
        'Sink value φ by token and layer; sinks from 2.5 on'
    """
    ds = need(ds, "phi_by_layer", RESULT, "phi", "sink_channel", "token_text", "modality")
    phi = ds["phi"].transpose("layer", "token").values.astype("float32")
    phi = np.where((ds["sink_channel"].values >= 0).any(1, keepdims=True), phi, np.nan)
    layers = [f"layer {layer}" for layer in ds["layer"].values]
    is_image = ds["modality"].values == "image"
    image, other = np.flatnonzero(is_image), np.flatnonzero(~is_image)
    fig = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.02, column_widths=[0.62, 0.38],
        subplot_titles=[f"{len(image):,} tokens of the image", f"{len(other):,} tokens of text"],
    )  # fmt: skip
    places = [_place(box) for box in ds["box"].transpose("token", "side").values[image]] if "box" in ds else []
    texts = [quoted(str(text), 14) for text in ds["token_text"].values[other]]
    named = [[f"{i} {what}" for i, what in zip(image, places, strict=True)],
             [f"{i} {text}" for i, text in zip(other, texts, strict=True)]]  # fmt: skip
    for column, (tokens, names) in enumerate(zip((image, other), named, strict=True), start=1):
        fig.add_heatmap(
            z=phi[:, tokens], x=names, y=layers, coloraxis="coloraxis", hoverongaps=False,
            hovertemplate="%{y} · token %{x}<br>φ = %{z:.3~g}<extra></extra>", row=1, col=column,
        )  # fmt: skip
    tau = float(ds.attrs["tau"])
    height = rows_height(len(layers), 17) + 60
    starts = np.flatnonzero(_changes(ds, image))
    for start in starts:
        fig.add_vline(x=start - 0.5, line={"color": "white", "width": 2}, row=1, col=1)
    shown = np.unique(np.linspace(0, max(len(image) - 1, 0), min(len(image), 8)).astype(int))
    fig.update_xaxes(
        title_text="position in the text", tickmode="array", tickvals=[named[0][i] for i in shown],
        ticktext=[str(image[i]) for i in shown], showgrid=False, row=1, col=1,
    )  # fmt: skip
    some = list(range(0, len(other), max(1, int(np.ceil(len(other) / LABELS)))))
    fig.update_xaxes(
        title_text="token of text", tickmode="array", tickvals=[named[1][i] for i in some],
        ticktext=[texts[i] for i in some], tickangle=-90, tickfont={"size": 10}, showgrid=False, row=1, col=2,
    )  # fmt: skip
    numbers = [str(layer) for layer in ds["layer"].values]
    fig.update_yaxes(**top_down(len(layers)), **row_labels(numbers, layers, height))
    fig.update_yaxes(title_text="layer", row=1, col=1)
    fig.update_layout(coloraxis=scale(float(np.nanmax(phi, initial=0.0)), tau))
    return finish(fig, f"Sink value φ by token and layer; sinks from {tau:.1f} on", height).update_layout(
        plot_bgcolor=UNKNOWN
    )


def scale(largest: float, tau: float) -> dict[str, Any]:
    """A colour axis for φ that breaks at the threshold."""
    top = max(largest, 1.25 * tau)
    at = tau / top
    ticks = [0.0, tau, top]
    words = ["0", f"τ = {tau:.1f}", f"{top:.1f}"]
    return {
        "colorscale": [[0.0, BELOW[0]], [at, BELOW[1]], [at, ABOVE[0]], [1.0, ABOVE[1]]],
        "cmin": 0.0,
        "cmax": top,
        "colorbar": {"title": {"text": "φ"}, "tickvals": ticks, "ticktext": words},
    }


def _place(box: np.ndarray) -> str:
    """Where a token lies, in pixels."""
    if not np.isfinite(box).all():
        return "nowhere"
    left, top, right, bottom = box
    return f"(x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f})"


def _changes(ds: xr.Dataset, image: np.ndarray) -> np.ndarray:
    """At which tokens of images another image or tile begins than that of the token before."""
    of = np.stack([ds[name].values[image] for name in ("image", "tile") if name in ds.coords])
    return np.concatenate([[False], (np.diff(of, axis=1) != 0).any(0)]) if len(image) else np.zeros(0, bool)
