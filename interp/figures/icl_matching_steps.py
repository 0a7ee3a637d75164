"""Which number of steps of an algorithm each layer of a model resembles."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._text import escape
from interp.figures._theme import AMOUNT, ORANGE, finish, row_labels, rows_height, top_down

RESULT = "best_matching_steps"
LABELLED = 12  # steps in each panel that leave room for their number


def icl_matching_steps(ds: xr.Dataset) -> go.Figure:
    """How much each layer of a model resembles an algorithm after each number of steps: the cosine over growing
    prefixes of their errors, of their predictions, and of their implicit weights. A ring marks the step that a layer
    resembles most.

    Args:
        ds: a result of `interp.icl.best_matching_steps`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.icl_matching_steps(results["best_matching_steps"])
        >>> figure.layout.title.text
        'Steps of ... that each layer resembles'
    """
    ds = need(ds, "icl_matching_steps", RESULT, "similarity", "best_step", kind="function")
    ds = ds.transpose("measure", "layer", "step", ...)
    measures, steps = ds["measure"].values, ds["step"].values
    height = rows_height(ds.sizes["layer"], 26)
    layers = [f"layer {layer}" for layer in ds["layer"].values]
    places = np.arange(len(steps))
    titles = [f"cosine of {measure}" for measure in measures]
    fig = make_subplots(1, len(measures), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    for column, measure in enumerate(measures, start=1):
        one = ds.sel(measure=measure)
        similarity = one["similarity"].values.astype("float32")
        heat = go.Heatmap(
            z=similarity, x=places, y=layers, customdata=np.tile(steps, (len(layers), 1)), coloraxis="coloraxis",
            hovertemplate="%{y} · %{customdata} steps<br>cosine %{z:.4~f}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(heat, 1, column)
        best = one["best_step"].values
        known = np.isfinite(best)
        ring = {"symbol": "circle-open", "size": 11, "color": ORANGE, "line": {"width": 2.5}}
        fig.add_scatter(
            x=np.searchsorted(steps, best[known]), y=np.array(layers, dtype=object)[known], mode="markers", marker=ring,
            text=best[known].astype(int).astype(str), hovertemplate="%{y}<br>best: %{text} steps<extra></extra>",
            row=1, col=column,
        )  # fmt: skip
    shown = places[:: max(1, -(-len(steps) // LABELLED))]
    ticks = {"tickmode": "array", "tickvals": shown.tolist(), "ticktext": [f"{steps[i]:,}" for i in shown]}
    fig.update_xaxes(title_text="steps of the algorithm", showgrid=False, range=[-0.5, len(steps) - 0.5], **ticks)
    numbers = [str(layer) for layer in ds["layer"].values]
    fig.update_yaxes(**top_down(len(layers)), **row_labels(numbers, layers, height))
    fig.update_yaxes(title_text="layer", row=1, col=1)
    lowest = float(np.nanmin(ds["similarity"].values, initial=1.0))
    bar = {"title": {"text": "cosine"}}
    fig.update_layout(coloraxis={"colorscale": AMOUNT, "cmin": lowest, "cmax": 1.0, "colorbar": bar}, showlegend=False)
    family = escape(str(ds.attrs.get("algorithm", "an algorithm")).partition("(")[0])
    return finish(fig, f"Steps of {family} that each layer resembles", height)
