"""Figures of the library on a page: in the page's colours, and with heads that can be clicked."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from interp import figures
from interp.figures._theme import INK, ORANGE
from interp.results import repeating
from interp_explorer import view, waiting
from interp_explorer.text import plain

MANY = 2000  # cells of a map above which its points are drawn by the graphics card
CHARACTERS = 92  # of a text's line: what fits beside the sidebar on a screen of 1,280 pixels

LIGHT = "#e6e8eb"  # lines and letters on a dark page
_DARK = {"font": {"color": LIGHT}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
_DARK_AXIS = {"gridcolor": "#3a3f47", "linecolor": "#6b7280", "tickcolor": "#6b7280"}
_DARK_SCENE = {"gridcolor": "#4a505a", "backgroundcolor": "#1b1f26"}


def keep(
    figure: go.Figure,
    *,
    name: str,
    key: str,
    targets: Callable[[go.Figure], go.Figure] | None = None,
    **selecting: Any,
) -> None:
    """Draw a figure, and keep it under its name for the page Export.

    targets: makes of a figure one that can be clicked where it could not; None: `with_targets`.
    """
    view.drawn(name, figure)
    figure = in_page_colours((targets or with_targets)(figure) if selecting else figure)
    st.plotly_chart(figure, key=key, theme=None, config={"displaylogo": False}, **selecting)


def show(
    make: Callable[..., go.Figure],
    dataset: Any,
    *,
    result: str,
    key: str,
    source: str = "results",
    take: Callable[[str], None] | None = None,
    box: bool = False,
    targets: Callable[[go.Figure], go.Figure] | None = None,
    beside: Mapping[str, Any] | None = None,
    **chosen: Any,
) -> None:
    """Draw `make(dataset, **chosen)`, and note the line of Python that draws it from `source[result]`.

    take: what a click on the figure does, `take_head` or `take_token`; it is called before the page runs again.
    box: whether a rectangle may be drawn, too, around several points.
    targets: as in `keep`.
    beside: arguments that the Python has under their own names.
    """
    clicks = {"on_select": lambda: _clicked(take, key), "selection_mode": ("points", "box") if box else "points"}
    beside = dict(beside or {})
    figure = _made(make, dataset, key, chosen, beside)
    keep(figure, name=make.__name__, key=key, targets=targets, **({} if take is None else clicks))
    view.code(*repeating.drawn(make.__name__, f"{source}[{result!r}]", *beside, **chosen))


def _clicked(take: Callable[[str], None] | None, key: str) -> None:
    waiting.clicked()
    if take is not None:
        take(key)


def show_others(
    dataset: Any,
    result: str,
    *known: str,
    beside: Mapping[str, Any] | None = None,
    folded: bool = False,
    **chosen: Any,
) -> None:
    """Draw what the library draws of `result` besides the figures that a page knows by name.

    beside, chosen: as in `show`, for those figures that take them. folded: each opens with a click.
    """
    for name, figure in figures.figures_of(result).items():
        if name in known:
            continue
        title = plain(name.replace("_", " ").capitalize())
        takes = inspect.signature(figure).parameters
        given, same = ({n: v for n, v in some.items() if n in takes} for some in (chosen, beside or {}))
        with st.expander(title) if folded else st.container():
            if not folded:
                st.subheader(title)
            show(figure, dataset, result=result, key=f"other {name}", beside=same, **given)


def _made(
    make: Callable[..., go.Figure], dataset: Any, key: str, chosen: dict[str, Any], beside: dict[str, Any]
) -> go.Figure:
    """The figure of this place, made anew only when what it shows is other: a slider moves one figure of a page."""
    places = st.session_state.setdefault("figures", {})
    shown, wanted, figure = places.get(key, ((), None, None))
    given = (dataset, *beside.values())
    same = len(shown) == len(given) and all(one is other for one, other in zip(shown, given, strict=True))
    if not same or wanted != (make, chosen, list(beside)):
        figure = make(dataset, **chosen, **beside)
        places[key] = given, (make, chosen, list(beside)), figure
    return figure


def take_head(key: str) -> None:
    """Make a clicked cell's layer and head those of all pages.

    Rows of a map are called "layer 3" where its columns are heads, or "layer 3 · kv head 1".
    """
    for point in st.session_state[key]["selection"]["points"]:
        layer, *kv_head = re.findall(r"\d+", point["y"])
        st.session_state["layer"] = layer
        if kv_head:
            st.session_state["kv_head"] = kv_head[0]
        else:
            st.session_state["head"] = str(int(point["x"]))


def take_token(key: str) -> None:
    """Make a clicked bar's token the chosen one, where a figure has a bar for each token."""
    for point in st.session_state[key]["selection"]["points"]:
        st.session_state["token"] = int(point["point_index"])


def with_targets(figure: go.Figure) -> go.Figure:
    """The figure with an invisible point on every cell of its heat maps: Streamlit hears no click on a heat map.

    Bars keep their colours when one of them is chosen.
    """
    figure = go.Figure(figure)
    figure.update_traces(
        selected={"textfont": {"color": ORANGE}}, unselected={"marker": {"opacity": 1.0}}, selector={"type": "bar"}
    )
    unseen = {"marker": {"opacity": 0.0}}
    for heat in [trace for trace in figure.data if trace.type == "heatmap"]:
        rows, columns = np.asarray(heat.y), np.asarray(heat.x)
        row = np.repeat(rows, len(columns))
        of_cells = {name: np.ravel(heat[name]) for name in ("text", "customdata") if heat[name] is not None}
        figure.add_trace(
            (go.Scattergl if len(row) > MANY else go.Scatter)(
                x=np.tile(columns, len(rows)), y=row, hovertext=row, **of_cells, mode="markers", showlegend=False,
                hovertemplate=heat.hovertemplate.replace("%{y}", "%{hovertext}"),  # y itself is shown as its tick is
                marker={"size": 8, "opacity": 0.0}, selected=unseen, unselected=unseen,
                xaxis=heat.xaxis, yaxis=heat.yaxis,
            )
        )  # fmt: skip
        heat.hoverinfo, heat.hovertemplate = "skip", None
        figure.layout[_axis_of(heat)].range = [float(columns[0]) - 0.5, float(columns[-1]) + 0.5]
    return figure


def _axis_of(trace: Any) -> str:
    """The layout's name of a trace's horizontal axis: x2 is xaxis2."""
    return f"xaxis{(trace.xaxis or 'x')[1:]}"


def dark() -> bool:
    """Whether the page is dark now."""
    return getattr(st.context.theme, "type", "light") == "dark"


def in_page_colours(figure: go.Figure) -> go.Figure:
    """The figure on the page's ground: figures of the library are made for white paper."""
    if not dark():
        return figure
    figure = go.Figure(figure).update_layout(**_DARK)
    for part in (*figure.data, *figure.layout.shapes):
        line = getattr(part, "line", None)
        if line is not None and line.color == INK:
            line.color = LIGHT
        marker = getattr(part, "marker", None)
        if marker is not None and isinstance(marker.color, str) and marker.color == INK:
            marker.color = LIGHT
    figure.update_xaxes(**_DARK_AXIS).update_yaxes(**_DARK_AXIS)
    axes = dict.fromkeys(("xaxis", "yaxis", "zaxis"), _DARK_SCENE)
    return figure.update_scenes(**axes) if any(t.type in ("surface", "scatter3d") for t in figure.data) else figure
