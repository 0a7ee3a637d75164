"""How a model comes to do what an algorithm does: losses, predictions and sensitivities over training."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._text import escape
from interp.figures._theme import BLUE, GREY, INK, ORANGE, finish

RESULT = "align"
COLOURS = (BLUE, ORANGE, "#009e73", "#aa4499", "#56b4e9", "#e69f00")
DASHED = {"dash": "dash", "width": 1.5}


def icl_alignment(ds: xr.Dataset) -> go.Figure:
    """A model in training beside learning algorithms on the same tasks: half the mean squared error of each, how far
    the predictions are apart, the size of the sensitivities to the query and of their difference, and their cosine.
    Bands are two standard errors over tasks. A cosine of sensitivities that are hardly there is noise: read it beside
    their size.

    Args:
        ds: results of `interp.icl.align` along `step`, as `interp.icl.Trajectory` collects them.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.icl_alignment(results["align"])
        >>> figure.layout.title.text
        'Alignment over training (dashed: the algorithms themselves)'
    """
    measures = ("loss_model", "loss_algorithm", "preds_diff", "model_diff", "model_cos", "grad_norm_model")
    ds = need(ds, "icl_alignment", RESULT, "step", *measures, kind="function")
    ds = ds if "algorithm" in ds.dims else ds.expand_dims(algorithm=[str(ds.attrs.get("algorithm", "the algorithm"))])
    titles = ["loss", "difference of predictions", "size of sensitivities", "cosine of sensitivities"]
    fig = make_subplots(2, 2, horizontal_spacing=0.11, vertical_spacing=0.17, subplot_titles=titles)
    names = [escape(str(name)) for name in ds["algorithm"].values]
    first = ds.isel(algorithm=0)
    _line(fig, first, "loss_model", "the model", INK, 1, 1, legend=True)
    _line(fig, first, "grad_norm_model", "the model", INK, 2, 1)
    for i, name in enumerate(names):
        one, colour = ds.isel(algorithm=i), COLOURS[i % len(COLOURS)]
        _line(fig, one, "loss_algorithm", name, colour, 1, 1, dashed=True)
        _line(fig, one, "preds_diff", name, colour, 1, 2, legend=True)
        _line(fig, one, "grad_norm_algorithm", name, colour, 2, 1, dashed=True)
        _line(fig, one, "model_diff", name, colour, 2, 1)
        _line(fig, one, "model_cos", name, colour, 2, 2)
    fig.add_hline(1, row=2, col=2, line={"color": GREY, "width": 1})
    fig.update_xaxes(title_text="training step")
    fig.update_yaxes(title_text="½ (ŷ − y)² (y²)", rangemode="tozero", row=1, col=1)
    fig.update_yaxes(title_text="mean |ŷ − ŷ′| (y)", rangemode="tozero", row=1, col=2)
    fig.update_yaxes(title_text="‖g‖, and ‖g − g′‖ (y/x)", rangemode="tozero", row=2, col=1)
    fig.update_yaxes(title_text="cos(g, g′)", row=2, col=2)
    fig.update_layout(legend={"y": -0.11})
    title = "Alignment over training (dashed: the algorithms themselves)"
    return finish(fig, title, 640).update_layout(margin_b=90)


def _line(
    fig: go.Figure, one: xr.Dataset, measure: str, name: str, colour: str, row: int, col: int,
    *, dashed: bool = False, legend: bool = False,
) -> None:  # fmt: skip
    """A measure over steps with a band of two standard errors, where it has them."""
    step, value = one["step"].values, one[measure].values.astype("float32")
    at = {"row": row, "col": col}
    if f"{measure}_se" in one and not dashed:
        spread = 2 * one[f"{measure}_se"].values.astype("float32")
        edge = {"x": step, "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip", "showlegend": False}
        fig.add_scatter(**edge, y=value - spread, legendgroup=name, **at)
        fill = f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, 0.15)"
        fig.add_scatter(**edge, y=value + spread, legendgroup=name, fill="tonexty", fillcolor=fill, **at)
    fig.add_scatter(
        x=step, y=value, name=name, legendgroup=name, showlegend=legend,
        mode="lines+markers" if np.isfinite(value).sum() < 40 and not dashed else "lines",
        marker={"size": 4}, line={"color": colour, **(DASHED if dashed else {"width": 2})},
        hovertemplate=f"{name}<br>step %{{x}}<br>%{{y:.4~g}}<extra></extra>", **at,
    )  # fmt: skip
