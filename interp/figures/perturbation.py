"""How far each layer's attention output moves at every step, and what it does to the loss."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._text import quoted
from interp.figures._theme import AMOUNT, BLUE, ORANGE, finish, row_labels, rows_height, top_down

RESULT = "perturbation"
NAMED = 4


def perturbation(ds: xr.Dataset) -> go.Figure:
    """Above, the relative change of each layer's attention output while the true text is read on under the policy,
    ‖o_full - o_policy‖ / ‖o_full‖. Below, what happens to the loss of the next token: orange is worse than with the
    full cache, blue is better; the tokens that lost most are named.

    Args:
        ds: an answer to the question `perturbation` of `interp.explain`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.perturbation(results["perturbation"])
        >>> figure.layout.title.text
        'Attention outputs move by 26.1%, the loss by -0.021 nats a token'
    """
    ds = need(ds, "perturbation", RESULT, "layer_error", "nll_difference", kind="question")
    name = "attn_out_error" if "attn_out_error" in ds else "layer_error"
    error = ds[name].transpose("layer", "step").values.astype("float32")
    layers = [f"layer {layer}" for layer in ds["layer"].values]
    steps = ds["step"].values
    height = rows_height(len(layers), 15) + 200
    fig = make_subplots(
        2, 1, shared_xaxes=True, row_heights=[height - 340, 200], vertical_spacing=50 / height,
        subplot_titles=["change of what attention adds", "change of the loss of the next token"],
    )  # fmt: skip
    fed = [quoted(str(text)) for text in ds["step_text"].values]
    following = [quoted(str(text)) for text in ds["next_text"].values]
    fig.add_heatmap(
        z=error, x=steps, y=layers, coloraxis="coloraxis", text=np.tile(fed, (len(layers), 1)),
        hovertemplate="%{y} · step %{x}, reading %{text}<br>moves by %{z:.1%}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    worse = ds["nll_difference"].values.astype("float32")
    fig.add_bar(
        x=steps, y=worse, marker_color=np.where(worse > 0, ORANGE, BLUE), text=following, textposition="none",
        customdata=ds["nll_full"].values.astype("float32"), showlegend=False,
        hovertemplate="step %{x}: next is %{text}<br>%{y:+.3f} nats, from %{customdata:.3f}<extra></extra>",
        row=2, col=1,
    )  # fmt: skip
    top = float(worse.max(initial=0.0))
    for i in np.argsort(-worse)[:NAMED]:
        if worse[i] > max(0.1, top / 4):
            fig.add_annotation(
                text=following[i], x=steps[i], y=float(worse[i]), textangle=-45, xanchor="left", yanchor="bottom",
                xshift=-6, showarrow=False, row=2, col=1,
            )  # fmt: skip
            fig.update_yaxes(range=[1.1 * min(0.0, float(worse.min())), 1.5 * top], row=2, col=1)
    numbers = [str(layer) for layer in ds["layer"].values]
    fig.update_yaxes(
        title_text="layer", **top_down(len(layers)), **row_labels(numbers, layers, height - 200), row=1, col=1
    )
    fig.update_yaxes(title_text="nats", row=2, col=1)
    fig.update_xaxes(showgrid=False)
    fig.update_xaxes(title_text="step (true token read after the prompt)", row=2, col=1)
    strong = float(np.nanquantile(error, 0.995)) or 1.0
    bar = {"title": {"text": "relative<br>change"}, "tickformat": ".0%", "len": 0.6, "y": 1, "yanchor": "top"}
    fig.update_layout(coloraxis={"colorscale": AMOUNT, "cmin": 0, "cmax": strong, "colorbar": bar})
    title = f"Attention outputs move by {error.mean():.1%}, the loss by {worse.mean():+.3f} nats a token"
    return finish(fig, title, height)
