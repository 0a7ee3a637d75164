"""The largest and the median activation that leave each block."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.figures._need import need
from interp.figures._text import quoted
from interp.figures._theme import BLUE, GREY, ORANGE, finish

RESULT = "text_sinks"


def massive_activations(ds: xr.Dataset) -> go.Figure:
    """The largest and the median magnitude in the residual stream after each block; orange where the largest is a
    massive activation. Pointing at it shows its token and channel.

    Args:
        ds: a result of the probe `text_sinks`.

    Raises:
        FigureError: for another dataset.

    Examples:
        >>> figure = interp.figures.massive_activations(results["text_sinks"])
        >>> figure.layout.title.text
        'What leaves each block'
    """
    ds = need(
        ds, "massive_activations", RESULT, "residual_max", "residual_median", "massive", "massive_position",
        "massive_channel", "token_text",
    )  # fmt: skip
    layers = ds["layer"].values
    largest, median = (ds[name].values.astype("float32") for name in ("residual_max", "residual_median"))
    massive = ds["massive"].values.astype(bool)
    where = [
        f"token {token} {quoted(str(ds['token_text'].sel(token=token).item()))}, channel {channel}"
        for token, channel in zip(ds["massive_position"].values, ds["massive_channel"].values, strict=True)
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
