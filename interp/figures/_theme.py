"""What all figures share: colours, fonts, margins and the labelling of layer axes.

Colours survive the common colour-vision deficiencies: viridis for amounts, red-blue for signed numbers, and two of the
Okabe-Ito palette for lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

AMOUNT = "Viridis"
SIGNED = "RdBu_r"
BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#8a8f98", "#22262b"
SANS = "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"

_AXIS = {
    "automargin": True,
    "gridcolor": "#e6e8eb",
    "linecolor": "#b9bec5",
    "ticks": "outside",
    "tickcolor": "#b9bec5",
    "ticklen": 4,
    "title": {"standoff": 8, "font": {"size": 12}},
    "tickfont": {"size": 11},
    "zeroline": False,
}
_COLOUR_BAR = {
    "thickness": 14,
    "outlinewidth": 0,
    "tickfont": {"size": 11},
    "title": {"side": "top", "font": {"size": 12}},
}
_SCENE_AXIS = {
    "gridcolor": "#d5d9de",
    "backgroundcolor": "#f6f7f8",
    "showbackground": True,
    "tickfont": {"size": 10},
    "title": {"font": {"size": 12}},
}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": SANS, "size": 12, "color": INK},
        "title": {"x": 0.0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": 16}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 30, "t": 78, "b": 56},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "scene": dict.fromkeys(("xaxis", "yaxis", "zaxis"), _SCENE_AXIS),
        "hoverlabel": {"align": "left", "font": {"family": SANS, "size": 12}},
        "legend": {"orientation": "h", "x": 0.0, "xanchor": "left", "y": -0.12, "yanchor": "top"},
        "coloraxis": {"colorbar": _COLOUR_BAR},
    }
)


def finish(fig: go.Figure, title: str, height: int) -> go.Figure:
    """Applies the shared look; `title` must be escaped where it holds token text, `height` is in pixels."""
    fig.update_layout(template=_TEMPLATE, title_text=title, height=height)
    fig.update_annotations(font_size=13)
    return fig


def rows_height(rows: int, pixels: float, least: int = 360, most: int = 1500) -> int:
    """Height in pixels of a figure whose plot area has `rows` rows of about `pixels` each."""
    return int(np.clip(rows * pixels + 140, least, most))


def row_labels(labels: Sequence[str], rows: Sequence[Any], height: int, room: int = 15) -> dict[str, Any]:
    """Axis settings that label the given rows, or every n-th of them so that each label has `room` pixels."""
    step = max(1, int(np.ceil(room * len(rows) / max(height - 140, 1))))
    return {"tickmode": "array", "tickvals": list(rows[::step]), "ticktext": list(labels[::step])}


def top_down(rows: int) -> dict[str, Any]:
    """Axis settings that put the first of `rows` categories on top and leave no space around them."""
    return {"range": [rows - 0.5, -0.5], "showgrid": False}


def decades(low: float, high: float, unit: str, scale: float = 1.0) -> dict[str, list[Any]]:
    """Colour bar ticks at the powers of ten between log10 values `low` and `high`: `0.1x, 1x, 10x` for unit `x`."""
    exponents = np.arange(np.ceil(low), np.floor(high) + 1)
    return {"tickvals": exponents.tolist(), "ticktext": [f"{scale * 10.0**e:,.10g}{unit}" for e in exponents]}
