"""Figures of the library on a page: in the page's colours, and with heads that can be clicked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from interp.figures._theme import INK
from interp_explorer import view

CHARACTERS = 92  # of a text's line: what fits beside the sidebar on a screen of 1,280 pixels

LIGHT = "#e6e8eb"  # lines and letters on a dark page
_DARK = {"font": {"color": LIGHT}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
_DARK_AXIS = {"gridcolor": "#3a3f47", "linecolor": "#6b7280", "tickcolor": "#6b7280"}
_DARK_SCENE = {"gridcolor": "#4a505a", "backgroundcolor": "#1b1f26"}


def keep(figure: go.Figure, *, name: str, key: str, **selecting: Any) -> None:
    """Draw a figure, and keep it under its name for the page Export."""
    view.drawn(name, figure)
    figure = in_page_colours(with_targets(figure) if selecting else figure)
    st.plotly_chart(figure, key=key, theme=None, config={"displaylogo": False}, **selecting)


def show(
    make: Callable[..., go.Figure], dataset: Any, *, result: str, key: str, source: str = "results", **chosen: Any
) -> None:
    """Draw `make(dataset, **chosen)`, and note the line of Python that draws it from `source[result]`."""
    keep(make(dataset, **chosen), name=make.__name__, key=key)
    given = "".join(f", {k}={v!r}" for k, v in chosen.items() if v is not None)
    view.code(f"interp.figures.{make.__name__}({source}[{result!r}]{given}).show()")


def show_clickable(make: Callable[..., go.Figure], dataset: Any, *, result: str, key: str) -> None:
    """The same for a map of layers and heads: a click on a cell chooses that layer and head for all pages."""
    clicks = {"on_select": lambda: take_choice(key), "selection_mode": "points"}
    keep(make(dataset), name=make.__name__, key=key, **clicks)
    view.code(f"interp.figures.{make.__name__}(results[{result!r}]).show()")


def take_choice(key: str) -> None:
    """Make a clicked cell's layer and head the shared ones. Runs before the page does."""
    points = st.session_state[key]["selection"]["points"]
    if points and "customdata" in points[0]:
        layer, head = points[0]["customdata"]
        st.session_state["layer"], st.session_state["head"] = str(layer), str(head)


def with_targets(figure: go.Figure) -> go.Figure:
    """The figure with an invisible point on every cell of its heat maps: Streamlit hears no click on a heat map."""
    figure = go.Figure(figure)
    for heat in [trace for trace in figure.data if trace.type == "heatmap"]:
        heads, layers = np.asarray(heat.x), list(heat.y)
        column, row = np.meshgrid(np.arange(len(heads)), np.arange(len(layers)))
        text = None if heat.text is None else np.asarray(heat.text, dtype=object)[row.ravel(), column.ravel()]
        number = np.array([int(str(layer).rpartition(" ")[2]) for layer in layers])
        # as lists: what Streamlit tells of a clicked point of a packed array is no list
        chosen = np.stack([number[row.ravel()], heads[column.ravel()]], axis=1).astype(int).tolist()
        figure.add_scatter(
            x=heads[column.ravel()], y=[layers[i] for i in row.ravel()], text=text, mode="markers",
            customdata=chosen, hovertemplate=heat.hovertemplate, marker={"size": 14, "opacity": 0.0}, showlegend=False,
            selected={"marker": {"opacity": 0.0}}, unselected={"marker": {"opacity": 0.0}},
            xaxis=heat.xaxis, yaxis=heat.yaxis,
        )  # fmt: skip
        heat.hoverinfo, heat.hovertemplate = "skip", None
        figure.layout[_axis_of(heat)].range = [float(heads[0]) - 0.5, float(heads[-1]) + 0.5]
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
    figure.update_xaxes(**_DARK_AXIS).update_yaxes(**_DARK_AXIS)
    axes = dict.fromkeys(("xaxis", "yaxis", "zaxis"), _DARK_SCENE)
    return figure.update_scenes(**axes) if any(t.type in ("surface", "scatter3d") for t in figure.data) else figure
