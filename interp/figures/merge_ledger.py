"""Which tokens were evicted in each layer, and how many of them were merged."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._bins import mean_in_bins, starts, texts_in_bins
from interp.figures._need import need
from interp.figures._text import quoted
from interp.figures._theme import AMOUNT, BLUE, GREY, INK, ORANGE, finish, row_labels, rows_height, top_down

RESULT = "ledger"


def merge_ledger(ds: xr.Dataset) -> go.Figure:
    """Left, the share of a layer's heads that evicted each token (neighbouring positions share a column). Right, how
    many tokens a layer evicted, those that were merged into another in orange. Below, the kinds of token: their share
    of the text and of the evictions.

    Args:
        ds: an answer to the question `ledger` of `interp.explain`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.merge_ledger(results["ledger"])
        >>> figure.layout.title.text
        '480 evictions, 241 of them merged'
    """
    ds = need(ds, "merge_ledger", RESULT, "layer_evicted", "merged", "kind_share", kind="question")
    share = ds["layer_evicted"].transpose("policy_layer", "token").values
    numbers = ds["policy_layer"].values
    layers = [f"layer {layer}" for layer in numbers]
    height = rows_height(len(layers), 17) + 220
    texts = texts_in_bins([str(text) for text in ds["token_text"].values])
    fig = make_subplots(
        2, 2, column_widths=[0.72, 0.28], row_heights=[height - 360, 220], horizontal_spacing=0.02,
        vertical_spacing=90 / height, specs=[[{}, {}], [{"colspan": 2}, None]],
        subplot_titles=["heads that evicted a token", "evictions of a layer", "kinds of token"],
    )  # fmt: skip
    fig.add_heatmap(
        z=mean_in_bins(share).astype("float32"), x=starts(share.shape[1]), y=layers, coloraxis="coloraxis",
        text=np.tile([quoted(text, 40) for text in texts], (len(layers), 1)),
        hovertemplate="%{y} · from position %{x}<br>%{text}<br>evicted by %{z:.0%} of the heads<extra></extra>",
        row=1, col=1,
    )  # fmt: skip
    merged = ds["merged"].values == 1
    for name, chosen, colour in (("deleted", ~merged, BLUE), ("merged", merged, ORANGE)):
        count = np.array([int((ds["layer"].values[chosen] == layer).sum()) for layer in numbers], "int32")
        hover = "%{y}<br>%{x:,} tokens " + name + "<extra></extra>"
        fig.add_bar(
            x=count,
            y=layers,
            name=name,
            orientation="h",
            marker_color=colour,
            hovertemplate=hover,
            row=1,
            col=2,
            showlegend=bool(merged.any()),
        )
    kinds = [str(kind) for kind in ds["kind"].values]
    for name, variable, colour in (("of the text", "kind_share", GREY), ("of the evictions", "kind_evicted", INK)):
        hover = "%{x}: %{y:.1%} " + name + "<extra></extra>"
        values = ds[variable].values.astype("float32")
        fig.add_bar(x=kinds, y=values, name=name, marker_color=colour, hovertemplate=hover, row=2, col=1)
    fig.update_yaxes(**top_down(len(layers)), row=1)
    labels = row_labels([str(layer) for layer in numbers], layers, height - 220)
    fig.update_yaxes(title_text="layer", **labels, row=1, col=1)
    fig.update_yaxes(showticklabels=False, title_text="", row=1, col=2)
    fig.update_xaxes(title_text="token position", showgrid=False, row=1, col=1)
    fig.update_xaxes(title_text="tokens, all heads", row=1, col=2)
    fig.update_xaxes(title_text="kind of token", showgrid=False, row=2, col=1)
    fig.update_yaxes(title_text="share", tickformat=".0%", rangemode="tozero", row=2, col=1)
    bar = {"title": {"text": "heads"}, "tickformat": ".0%", "len": 0.5, "y": 1, "yanchor": "top"}
    fig.update_layout(
        coloraxis={"colorscale": AMOUNT, "cmin": 0, "cmax": 1, "colorbar": bar}, bargap=0.3,
        legend={"y": -70 / height}, barmode="group",
    )  # fmt: skip
    fig.data[1].offsetgroup = fig.data[2].offsetgroup = "layer"
    fig.data[2].base = fig.data[1].x
    merges = f", {int(merged.sum()):,} of them merged" if merged.any() else ""
    return finish(fig, f"{ds.sizes['eviction']:,} evictions{merges}", height).update_layout(margin_b=110)
