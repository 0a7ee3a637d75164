"""The exact predictor of a linear attention layer beside what gradient descent would have there."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import choose, need
from interp.figures._theme import SIGNED, finish

RESULT = "icl_gd"


def icl_effective_predictor(ds: xr.Dataset, layer: int = 0) -> go.Figure:
    """The matrix A_eff with which a layer predicts, (Σ y x)ᵀ A_eff x_q; beside it A* of the best single layer for the
    law of the tasks, or where there is none the nearest multiple of the identity, which is a step of gradient descent;
    and their difference, on its own scale.

    Args:
        ds: a result of the probe `icl_gd` on a model with linear layers.
        layer: one of its layers.

    Raises:
        FigureError: for any other dataset or layer.

    Examples:
        >>> figure = interp.figures.icl_effective_predictor(results["icl_gd"], layer=0)
        >>> figure.layout.title.text
        'Effective predictor: mean step η = 6, 3.0% off a multiple of the identity'
    """
    ds = need(ds, "icl_effective_predictor", RESULT, "A_eff", "effective_eta", "distance_to_identity")
    ds = ds.sel(layer=choose(ds, "layer", layer))
    A = ds["A_eff"].transpose("input", "query_input").values.astype("float32")
    if "A_optimal" in ds:
        target, named = ds["A_optimal"].transpose("input", "query_input").values.astype("float32"), "A*, the best layer"
    else:
        scale = np.diagonal(A).mean()
        target, named = scale * np.eye(len(A), dtype="float32"), f"the nearest c · I, c = {scale:.3g}"
    titles = [f"A_eff of layer {layer}", named, "their difference"]
    fig = make_subplots(1, 3, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles)
    coordinates = np.arange(len(A))
    for column, values in enumerate((A, target, A - target), start=1):
        heat = go.Heatmap(
            z=values, x=coordinates, y=coordinates, xgap=1, ygap=1,
            coloraxis="coloraxis" if column < 3 else "coloraxis2",
            hovertemplate="x %{y} · query x %{x}<br>%{z:.4~g}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(heat, 1, column)
    ticks = {"tickmode": "array", "tickvals": coordinates[:: max(1, len(A) // 10)], "showgrid": False}
    fig.update_xaxes(title_text="coordinate of the query", range=[-0.5, len(A) - 0.5], **ticks)
    fig.update_yaxes(range=[len(A) - 0.5, -0.5], **ticks)
    fig.update_yaxes(title_text="coordinate of Σ y x", row=1, col=1)
    bars = [
        ("A (1/x²)", max(np.abs(A).max(), np.abs(target).max()), 1.01),
        ("difference", np.abs(A - target).max(), 1.1),
    ]
    fig.update_layout(
        {
            axis: {"colorscale": SIGNED, "cmin": -reach, "cmax": reach, "colorbar": {"title": {"text": text}, "x": x}}
            for axis, (text, reach, x) in zip(("coloraxis", "coloraxis2"), bars, strict=True)
        }
    )
    away, eta = float(ds["distance_to_identity"]), float(ds["effective_eta"])
    title = f"Effective predictor: mean step η = {eta:.3g}, {away:.1%} off a multiple of the identity"
    return finish(fig, title, 430).update_layout(margin_r=150)
