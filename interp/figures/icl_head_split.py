"""How much of each head's output the demonstrations make, and whether relaxed linear attention tells its direction."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._head_maps import BAR, head_axes, rows_of
from interp.figures._need import need
from interp.figures._theme import AMOUNT, SIGNED, finish, rows_height

RESULT = "head_split"
TITLES = ("attention to the demonstrations", "how far they move the output", "cosine with the linear update")


def icl_head_split(ds: xr.Dataset) -> go.Figure:
    """What demonstrations do to each head's output at the last token, exactly: the attention a that they get, how far
    they move the output relative to what it is without them, and the cosine of that shift with the update that
    attention without softmax would make. Empty cells see no demonstration.

    Args:
        ds: a result of `interp.icl.language.head_split`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.icl_head_split(results["head_split"])
        >>> figure.layout.title.text
        'What 4 demonstrations do to each head'
    """
    ds = need(
        ds, "icl_head_split", RESULT, "demo_mass", "shift_norm", "out_query_norm", "linear_cosine", kind="function"
    )
    moved = ds["shift_norm"] / ds["out_query_norm"].where(ds["out_query_norm"] > 0)
    fig = make_subplots(1, 3, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=TITLES)
    height = rows_height(ds.sizes["layer"], 18)
    layers, heads = ds["layer"].values, ds["head"].values
    for column, values in enumerate((ds["demo_mass"], moved, ds["linear_cosine"]), start=1):
        fig.add_heatmap(
            z=values.transpose("layer", "head").values.astype("float32"), x=heads, y=rows_of(layers),
            xgap=1, ygap=1, coloraxis=f"coloraxis{'' if column == 1 else column}",
            hovertemplate="%{y} · head %{x}<br>%{z:.3f}<extra></extra>", row=1, col=column,
        )  # fmt: skip
    head_axes(fig, layers, heads, columns=3, height=height, most=12)
    most = max(float(moved.max()), 1e-6) if moved.notnull().any() else 1.0
    scales = ((AMOUNT, 0.0, 1.0, "a"), (AMOUNT, 0.0, most, "|shift| / |output|"), (SIGNED, -1.0, 1.0, "cosine"))
    bar = {**BAR, "y": -90 / height, "len": 0.31}
    for column, (colours, low, high, said) in enumerate(scales, start=1):
        axis = {"colorscale": colours, "cmin": low, "cmax": high}
        axis["colorbar"] = {"title": {"text": said}, "x": (column - 1) * 0.345, **bar}
        fig.update_layout({f"coloraxis{'' if column == 1 else column}": axis})
    demos = int(ds.attrs.get("demonstrations", 0))
    title = f"What {demos} demonstrations do to each head" if demos else "What demonstrations do to each head"
    return finish(fig, title, height + 60).update_layout(margin_b=140)
