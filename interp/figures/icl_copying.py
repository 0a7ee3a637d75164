"""Whether a first layer copies: what its output at each token holds of every token."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._theme import AMOUNT, BLUE, GREY, ORANGE, finish

RESULT = "copying_score"
KINDS = {"own": ("own token", GREY), "next": ("next token", ORANGE), "others": ("mean of the others", BLUE)}


def icl_copying(ds: xr.Dataset) -> go.Figure:
    """What a layer's output at each context token holds of every token: the norm of the mean gradient. Left, all pairs
    (after the last step that was measured): a copying layer has a second diagonal. Right, the mean over outputs of a
    token's own share, the next token's and the others', over training where several steps were measured; bars and bands
    are two standard errors.

    Args:
        ds: a result of `interp.icl.copying_score`, or several along `step`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.icl_copying(results["copying_score"])
        >>> figure.layout.title.text
        'What layer 0 copies between tokens'
    """
    ds = need(ds, "icl_copying", RESULT, "sensitivity", *KINDS, kind="function")
    over_steps = "step" in ds.dims
    last = ds.isel(step=-1) if over_steps else ds
    fig = make_subplots(
        1, 2, column_widths=[0.52, 0.48], horizontal_spacing=0.2,
        subplot_titles=["sensitivity of each output to each token", "mean over outputs"],
    )  # fmt: skip
    names = [str(name) for name in last["token_name"].values]
    heat = go.Heatmap(
        z=last["sensitivity"].transpose("output", "token").values.astype("float32"),
        coloraxis="coloraxis", xgap=1, ygap=1,
        customdata=np.array([[[out, name] for name in names] for out in names[: last.sizes["output"]]], dtype=object),
        hovertemplate="output at %{customdata[0]} · token %{customdata[1]}<br>%{z:.3~g}<extra></extra>",
    )  # fmt: skip
    fig.add_trace(heat, 1, 1)
    step = max(1, -(-len(names) // 11))
    ticks = {"tickmode": "array", "showgrid": False}
    shown = np.arange(0, len(names), step)
    labels = {"tickvals": shown, "ticktext": [names[i] for i in shown]}
    fig.update_xaxes(title_text="token", **ticks, **labels, row=1, col=1)
    rows = shown[shown < last.sizes["output"]]
    labels = {"tickvals": rows, "ticktext": [names[i] for i in rows]}
    fig.update_yaxes(title_text="output at token", autorange="reversed", **ticks, **labels, row=1, col=1)
    for kind, (name, colour) in KINDS.items():
        value, spread = (ds[n].values.astype("float32") for n in (kind, f"{kind}_se"))
        error = {"type": "data", "array": np.atleast_1d(2 * spread), "color": colour, "thickness": 1.2}
        hover = f"{name}<br>%{{y:.3~g}}<extra></extra>"
        if over_steps:
            fig.add_scatter(
                x=ds["step"].values, y=value, name=name, error_y=error, mode="lines+markers", marker={"size": 4},
                line={"color": colour}, hovertemplate="step %{x}<br>" + hover, row=1, col=2,
            )  # fmt: skip
        else:
            fig.add_bar(
                x=[name], y=np.atleast_1d(value), error_y=error | {"color": "black"}, marker_color=colour, name=name,
                showlegend=False, hovertemplate=hover, row=1, col=2,
            )  # fmt: skip
    fig.update_xaxes(title_text="training step" if over_steps else "which token", row=1, col=2)
    fig.update_yaxes(title_text="norm of the mean gradient", rangemode="tozero", row=1, col=2)
    bar = {"title": {"text": "norm"}, "x": 0.43}
    fig.update_layout(coloraxis={"colorscale": AMOUNT, "cmin": 0, "colorbar": bar}, legend={"x": 0.6, "y": -0.16})
    title = f"What layer {int(ds.attrs.get('layer', 0))} copies between tokens"
    return finish(fig, title, 500).update_layout(margin_b=90)
