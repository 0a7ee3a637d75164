"""What each head attends to in repeated sequences and text, and whether it copies."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._head_maps import BAR, head_axes, rows_of
from interp.figures._need import need
from interp.figures._theme import AMOUNT, SIGNED, finish, rows_height

RESULT = "head_scores"
ATTENTION = {
    "induction": "induction",
    "prefix_matching": "prefix matching",
    "previous_token": "previous token",
    "duplicate_token": "duplicate token",
}


def icl_heads(ds: xr.Dataset) -> go.Figure:
    """Scores of every head. The first four are shares of attention: from a repeated token to the follower of its first
    occurrence (induction) and of all earlier ones (prefix matching), to the token before, and to the first occurrence
    itself. The last says whether the head raises the logit of what it attends to: 1 only that, -1 only others.

    Args:
        ds: a result of `interp.icl.language.head_scores`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.icl_heads(results["head_scores"])
        >>> figure.layout.title.text
        'Heads that could carry in-context learning'
    """
    ds = need(ds, "icl_heads", RESULT, *ATTENTION, "copying", kind="function")
    fig = make_subplots(
        1, 5, shared_yaxes=True, horizontal_spacing=0.015, subplot_titles=[*ATTENTION.values(), "copying"]
    )
    height = rows_height(ds.sizes["layer"], 16)
    layers, heads = ds["layer"].values, ds["head"].values
    for column, name in enumerate([*ATTENTION, "copying"], start=1):
        score, error = (ds[one].transpose("layer", "head").values.astype("float32") for one in (name, f"{name}_se"))
        fig.add_heatmap(
            z=score, x=heads, y=rows_of(layers), customdata=error, xgap=1, ygap=1, row=1, col=column,
            coloraxis="coloraxis2" if name == "copying" else "coloraxis",
            hovertemplate="%{y} · head %{x}<br>%{z:.3f} ± %{customdata:.3f}<extra></extra>",
        )  # fmt: skip
    head_axes(fig, layers, heads, columns=5, height=height, most=8)
    bar = {**BAR, "y": -90 / height}
    attention = {"title": {"text": "share of attention"}, "x": 0.0, "len": 0.6, **bar}
    copying = {"title": {"text": "copying"}, "x": 0.75, "len": 0.25, **bar}
    fig.update_layout(
        coloraxis={"colorscale": AMOUNT, "cmin": 0, "cmax": 1, "colorbar": attention},
        coloraxis2={"colorscale": SIGNED, "cmin": -1, "cmax": 1, "colorbar": copying},
    )
    return finish(fig, "Heads that could carry in-context learning", height + 60).update_layout(margin_b=140)
