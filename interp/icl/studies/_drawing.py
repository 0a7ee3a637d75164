"""What the figures of studies share: a line with its spread over seeds, a reference level, a paper's readings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._theme import AMOUNT, BLUE, GREY, INK, ORANGE, SIGNED, finish

__all__ = [
    "BLUE", "COLOURS", "GREEN", "GREY", "INK", "ORANGE", "finished", "heat", "level", "line", "named_axes", "panels",
    "place", "readings",
]  # fmt: skip

GREEN, PURPLE = "#009e73", "#aa4499"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#56b4e9", "#e69f00", INK, GREY)
"""Okabe and Ito's, for lines that are told apart by colour."""


def panels(titles: Sequence[str], columns: int = 3, spacing: float = 0.09) -> go.Figure:
    """Empty panels, filled row by row."""
    rows = -(-len(titles) // columns)
    gap = 0.0 if rows == 1 else 0.28 / rows
    return make_subplots(
        rows,
        min(columns, len(titles)),
        subplot_titles=list(titles),
        horizontal_spacing=spacing,
        vertical_spacing=gap,
    )


def place(index: int, columns: int = 3) -> dict[str, int]:
    """Row and column of the panel `index`, counted from 0, for plotly's `row=, col=`."""
    return {"row": index // columns + 1, "col": index % columns + 1}


def line(
    fig: go.Figure,
    values: xr.DataArray,
    name: str,
    colour: str,
    at: dict[str, int],
    *,
    over: str = "seed",
    dash: str = "solid",
    legend: bool = True,
) -> None:
    """The mean over `over` as a line along the other dimension, and the range from least to greatest as a band."""
    if over in values.dims:
        mean, low, high = values.mean(over), values.min(over), values.max(over)
    else:
        mean = low = high = values
    (along,) = mean.dims
    x = mean[along].values
    if over in values.dims and values.sizes[over] > 1:
        band = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
        fig.add_trace(go.Scatter(x=x, y=low.values, **band), **at)
        fig.add_trace(go.Scatter(x=x, y=high.values, fill="tonexty", fillcolor=faint(colour), **band), **at)
    fig.add_trace(
        go.Scatter(
            x=x, y=mean.values, name=name, mode="lines", legendgroup=name, showlegend=legend,
            line={"color": colour, "dash": dash, "width": 2},
        ),
        **at,
    )  # fmt: skip


def level(fig: go.Figure, y: float, name: str, at: dict[str, int], *, colour: str = INK, legend: bool = True) -> None:
    """A dotted horizontal line across what the panel shows so far."""
    drawn = [t for t in fig.data if (t.xaxis or "x") == _axis(fig, at)]
    xs = np.concatenate([np.asarray(t.x, dtype=float) for t in drawn])
    fig.add_trace(
        go.Scatter(
            x=[xs.min(), xs.max()], y=[y, y], name=name, mode="lines", legendgroup=name, showlegend=legend,
            line={"color": colour, "dash": "dot", "width": 1.5},
        ),
        **at,
    )  # fmt: skip


def readings(
    fig: go.Figure, x: Sequence[float], y: Sequence[float], name: str, at: dict[str, int], *, legend: bool = True
) -> None:
    """A paper's values as open diamonds."""
    fig.add_trace(
        go.Scatter(
            x=list(x), y=list(y), name=name, mode="markers", legendgroup=name, showlegend=legend,
            marker={"symbol": "diamond-open", "size": 10, "color": INK, "line": {"width": 2}},
        ),
        **at,
    )  # fmt: skip


WHITE_ON = {
    AMOUNT: lambda level: level < 0.62,
    SIGNED: lambda level: abs(level - 0.5) > 0.3,
    "Blues": lambda level: level > 0.6,
}
"""Where a colour scale, from 0 to 1, is too dark for dark letters."""


def heat(
    fig: go.Figure,
    values: xr.DataArray,
    at: dict[str, int],
    *,
    texts: np.ndarray | None = None,
    form: str = ".2g",
    scale: str = AMOUNT,
    low: float | None = None,
    high: float | None = None,
    size: int = 10,
) -> None:
    """Numbers in cells, in letters of `size` pixels: the first dimension down, the second across.

    `texts` replaces the numbers that are written; `scale` is one of `WHITE_ON`.
    """
    rows, columns = values.dims
    numbers = values.values
    low = float(np.nanmin(numbers)) if low is None else low
    high = float(np.nanmax(numbers)) if high is None else high
    if texts is None:
        texts = np.array([["" if np.isnan(v) else format(v, form) for v in row] for row in numbers], dtype=object)
    x, y = ([str(v) for v in values[dim].values] for dim in (columns, rows))
    cells = go.Heatmap(
        z=numbers, x=x, y=y, text=texts, colorscale=scale, zmin=low, zmax=high,
        showscale=False, xgap=1, ygap=1, hovertemplate="%{y} · %{x}<br>%{text}<extra></extra>",
    )  # fmt: skip
    # a heat map's own text has too weak a contrast on middle tones
    dark = WHITE_ON[scale]((numbers - low) / ((high - low) or 1.0))
    letters = go.Scatter(
        x=np.tile(x, len(y)), y=np.repeat(y, len(x)), text=texts.ravel(), mode="text", hoverinfo="skip",
        showlegend=False,
        textfont={"size": size, "color": np.where(dark, "white", INK).ravel()},
    )  # fmt: skip
    fig.add_trace(cells, **at)
    fig.add_trace(letters, **at)
    fig.update_yaxes(type="category", showgrid=False, range=[len(y) - 0.5, -0.5], **at)
    fig.update_xaxes(type="category", showgrid=False, range=[-0.5, len(x) - 0.5], **at)


def named_axes(
    fig: go.Figure, at: dict[str, int], x: str, y: str = "", *, log_x: bool = False, log_y: bool = False
) -> None:
    """Titles and scales of one panel's axes."""
    fig.update_xaxes(title_text=x, **({"type": "log"} if log_x else {}), **at)
    fig.update_yaxes(title_text=y, **({"type": "log"} if log_y else {}), **at)


def finished(fig: go.Figure, title: str, height: int) -> go.Figure:
    """The look of all figures, with the legend below the axis titles."""
    finish(fig, title, height)
    return fig.update_layout(legend={"y": -55 / max(height - 134, 1), "yanchor": "top"}, margin={"b": 110})


def faint(colour: str) -> str:
    """A colour for a band behind a line of the same colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _axis(fig: go.Figure, at: dict[str, int]) -> str:
    name: str = fig.get_subplot(at["row"], at["col"]).xaxis.plotly_name.replace("axis", "")
    return name
