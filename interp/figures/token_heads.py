"""Which heads look at one token."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr

from interp.figures._need import choose, need
from interp.figures._text import quoted
from interp.figures._theme import AMOUNT, finish, row_labels, rows_height, top_down

RESULT = "text_sinks"


def token_heads(ds: xr.Dataset, token: int | None = None) -> go.Figure:
    """The attention that one token receives from every head, averaged over the queries that can see it; unless it is
    chosen, the token that is the sink of the most layers.

    Args:
        ds: a result of the probe `text_sinks`.
        token: its position.

    Raises:
        FigureError: for another dataset or a token that it does not hold.

    Examples:
        >>> figure = interp.figures.token_heads(results["text_sinks"], token=0)
        >>> figure.layout.title.text
        'Attention that token 0 ... receives from each head'
    """
    ds = need(ds, "token_heads", RESULT, "mean_received", "token_text", "primary_sink")
    token = _most_frequent(ds["primary_sink"]) if token is None else choose(ds, "token", token)
    received = 100 * ds["mean_received"].sel(token=token).transpose("layer", "head").values.astype("float32")
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
    named = quoted(str(ds["token_text"].sel(token=token).item()))
    return finish(fig, f"Attention that token {token} {named} receives from each head", height)


def _most_frequent(values: xr.DataArray) -> int:
    return int(values.to_series().mode()[0])
