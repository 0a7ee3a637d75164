"""The rank of every head at 90 % of its energy."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._theme import AMOUNT, INK, finish, row_labels, rows_height, top_down

RESULT = "attention_rank"
LABELLED = 16  # heads side by side that leave room for a number in every cell


def rank_map(ds: xr.Dataset) -> go.Figure:
    """How many singular components hold 90 % of the energy of each head: left of its attention pattern, right of its
    scores before softmax, on one logarithmic colour scale. Where the components that were computed do not reach 90 %,
    the cell says so: ">32".

    Args:
        ds: a result of the probe `attention_rank`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.rank_map(results["attention_rank"])
        >>> figure.layout.title.text
        'Rank at 90 % of the energy, 40 tokens'
    """
    ds = need(ds, "rank_map", RESULT, "rank90", "rank90_censored", "score_rank90")
    k, d_head = ds.sizes["component"], ds.sizes["channel"]
    titles = [f"attention pattern ({k} components computed)", f"scores before softmax (at most {d_head})"]
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    height = rows_height(ds.sizes["layer"], 21)
    top = np.log2(max(k + 1, int(ds["score_rank90"].max())))
    layers = [f"layer {layer}" for layer in ds["layer"].values]
    for column, name in enumerate(("rank90", "score_rank90"), start=1):
        rank = ds[name].transpose("layer", "head").values
        text = rank.astype(str).astype(object)
        if name == "rank90":
            censored = ds["rank90_censored"].transpose("layer", "head").values.astype(bool)
            text[censored] = f">{k}"
        level = np.log2(np.maximum(rank, 1)).astype("float32")
        heat = go.Heatmap(
            z=level,
            x=ds["head"].values,
            y=layers,
            text=text,
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hovertemplate="%{y} · head %{x}<br>%{text} components hold 90 %<extra></extra>",
        )
        fig.add_trace(heat, 1, column)
        if ds.sizes["head"] <= LABELLED:
            fig.add_trace(
                _numbers(ds["head"].values, layers, text, np.where(level < 0.5 * top, "white", INK)), 1, column
            )
        fig.update_xaxes(title_text="head", showgrid=False, row=1, col=column, **_head_ticks(ds["head"].values))
    numbers = [str(layer) for layer in ds["layer"].values]
    fig.update_yaxes(**top_down(len(layers)), **row_labels(numbers, layers, height))
    fig.update_yaxes(title_text="layer", row=1, col=1)
    powers = np.arange(0, np.floor(top) + 1)
    ticks = {"tickvals": powers.tolist(), "ticktext": [f"{2**p:.0f}" for p in powers]}
    colour_bar = {"title": {"text": "components"}, **ticks}
    fig.update_layout(coloraxis={"colorscale": AMOUNT, "cmin": 0, "cmax": top, "colorbar": colour_bar})
    tokens = ds.attrs.get("n_tokens")
    return finish(fig, "Rank at 90 % of the energy" + (f", {int(tokens):,} tokens" if tokens else ""), height)


def _numbers(heads: np.ndarray, layers: list[str], text: np.ndarray, colour: np.ndarray) -> go.Scatter:
    """A number in every cell; a heat map's own text has one colour for all cells, or too weak a contrast."""
    return go.Scatter(
        x=np.tile(heads, len(layers)),
        y=np.repeat(layers, len(heads)),
        text=text.ravel(),
        mode="text",
        textfont={"size": 11, "color": colour.ravel()},
        hoverinfo="skip",
        showlegend=False,
    )


def _head_ticks(heads: np.ndarray) -> dict[str, object]:
    return {"tickmode": "array", "tickvals": heads[:: max(1, len(heads) // 16)]}
