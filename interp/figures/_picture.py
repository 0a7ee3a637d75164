"""One image of a result as the ground of a figure: where its tokens lie, what the model saw of it, and the picture.

Where a model sees the whole picture and parts of it, the parts are put together in one panel and the whole has its own.
"""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from jaxtyping import Bool, Float, Int
from plotly.subplots import make_subplots

from interp.figures._need import FigureError

JPEG = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+=*")
LARGEST = 800
"""Pixels of the longer side of a picture that a figure carries."""
NEAR = 0.3
"""Edges of tokens that lie no further apart, in widths of a token, are one edge."""
WIDTH, ROOM = 780, 150
"""Pixels that panels have side by side on a laptop, and those that titles and labels take below and above them."""
VEIL = 0.8
"""Opacity of colours over a picture."""
MARK = "#00c8ff"
"""Of frames around tokens; on no scale that lies over pictures."""


@dataclass(frozen=True)
class Panel:
    """The tokens that show the picture once, as cells between edges."""

    title: str
    token: Int[np.ndarray, " n"]
    """Positions along `token`."""
    x: Float[np.ndarray, " edge"]
    y: Float[np.ndarray, " edge"]
    span: Int[np.ndarray, "n 4"]
    """First row, last row + 1, first column, last column + 1 of each token's cells."""

    def laid(self, values: np.ndarray) -> np.ndarray:
        """Values of the panel's tokens on its cells `[row, column]`; NaN (or None) where no token lies."""
        numbers = values.dtype.kind == "f"
        shape = len(self.y) - 1, len(self.x) - 1
        plane = np.full(shape, np.nan, values.dtype) if numbers else np.full(shape, None, object)
        for (top, bottom, left, right), value in zip(self.span, values, strict=True):
            plane[top:bottom, left:right] = value
        return plane

    @property
    def area(self) -> Float[np.ndarray, " n"]:
        """Square pixels that each token covers."""
        top, bottom, left, right = self.span.T
        area: np.ndarray = (self.y[bottom] - self.y[top]) * (self.x[right] - self.x[left])
        return area

    @property
    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """Left, top, right, bottom of each token."""
        top, bottom, left, right = self.span.T
        return np.stack([self.x[left], self.y[top], self.x[right], self.y[bottom]], -1)


@dataclass(frozen=True)
class Ground:
    """An image of a result, and what lies under colours."""

    panels: list[Panel]
    size: tuple[float, float]
    source: Any
    """The picture, or a `data:` address of a small one; None where there is none."""

    @property
    def tokens(self) -> Int[np.ndarray, " n"]:
        """All tokens of the image."""
        return np.concatenate([panel.token for panel in self.panels])

    def start(self, *titles: str, rows: int = 1) -> go.Figure:
        """An empty figure with the picture in every panel, a column for each title and as many rows."""
        across, down = len(titles), rows
        width = WIDTH / across
        height = down * min(width * self.size[1] / self.size[0], 420.0) + ROOM + 40 * (down - 1)
        fig = make_subplots(
            down, across, horizontal_spacing=0.03, vertical_spacing=60 / height if down > 1 else 0,
            subplot_titles=[*titles, *[""] * (across * (down - 1))],
        )  # fmt: skip
        for row in range(1, down + 1):
            for column in range(1, across + 1):
                self._put(fig, row, column, last=row == down)
        return fig.update_layout(height=int(height), legend={"y": -60 / (height - ROOM), "x": 0.0})

    def _put(self, fig: go.Figure, row: int, column: int, last: bool) -> None:
        """The picture and its axes, in pixels from its upper left corner."""
        width, height = self.size
        fig.update_xaxes(
            range=[0, width], constrain="domain", showgrid=False, showticklabels=last,
            title_text="pixels" if last else "", row=row, col=column,
        )  # fmt: skip
        name = next(fig.select_xaxes(row=row, col=column)).plotly_name.replace("axis", "")
        fig.update_yaxes(
            range=[height, 0], scaleanchor=name, constrain="domain", showgrid=False, showticklabels=column == 1,
            title_text="pixels" if column == 1 else "", row=row, col=column,
        )  # fmt: skip
        if self.source is not None:
            fig.add_layout_image(
                source=self.source, x=0, y=0, sizex=width, sizey=height, sizing="stretch", layer="below",
                xref=name, yref=name.replace("x", "y"),
            )  # fmt: skip
        else:  # an empty trace, so that the panel is drawn
            fig.add_scatter(x=[None], y=[None], hoverinfo="skip", showlegend=False, row=row, col=column)

    def colour(
        self, fig: go.Figure, panel: Panel, values: np.ndarray, hover: str, column: int, row: int = 1,
        axis: str = "coloraxis", text: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Lay values of a panel's tokens over the picture. `hover` may name %{z}, %{customdata} (the token) and
        %{text}, which comes of `text`, one for each token."""
        fig.add_heatmap(
            z=panel.laid(values.astype("float32")), x=panel.x.astype("float32"), y=panel.y.astype("float32"),
            customdata=panel.laid(panel.token.astype("float32")), coloraxis=axis, hoverongaps=False,
            opacity=1.0 if self.source is None else VEIL, text=None if text is None else panel.laid(text),
            hovertemplate=f"token %{{customdata:.0f}}<br>{hover}<extra></extra>", row=row, col=column,
        )  # fmt: skip

    def frame(
        self, fig: go.Figure, panel: Panel, which: Bool[np.ndarray, " n"], name: str, column: int, row: int = 1,
        colour: str = MARK,
    ) -> None:  # fmt: skip
        """Draw frames around some tokens of a panel; the legend names them once."""
        if not which.any():
            return
        inside = 0.004 * max(self.size)
        left, top, right, bottom = (panel.boxes[which] + inside * np.array([1, 1, -1, -1])).T
        nothing = np.full(len(left), np.nan)
        x, y = (np.stack(corners, -1).ravel().astype("float32") for corners in (
            (left, right, right, left, left, nothing), (top, top, bottom, bottom, top, nothing)))  # fmt: skip
        fig.add_scatter(
            x=x, y=y, mode="lines", line={"color": colour, "width": 2}, name=name, legendgroup=name,
            showlegend=all(trace.name != name for trace in fig.data), hoverinfo="skip", row=row, col=column,
        )  # fmt: skip


def ground(ds: xr.Dataset, image: int = 0, picture: Any = None) -> Ground:
    """The image number `image` of a result with `box`, `image` and `view` along its tokens.

    picture: the picture itself (PIL); None: the small one that the result carries. Raises FigureError where the result
    has no such image. Where no token has a place, one panel has none.
    """
    box, of = ds["box"].transpose("token", "side").values, ds["image"].values
    placed = np.isfinite(box).all(1)
    if placed.any() and image not in of[placed]:
        raise FigureError(f"there is no image {image} in this result, which has {int(of[placed].max()) + 1}.")
    here = placed & (of == image)
    whole = here & (ds["view"].values == "whole")
    parts = here & ~whole
    shown = [("parts, put together", parts), ("the whole, seen once more", whole)]
    panels = [_panel(box, chosen, title) for title, chosen in shown if chosen.any()]
    if len(panels) < 2:
        panels = [_panel(box, here, "" if here.any() else "no token has a place")]
    size = (panels[0].x[-1], panels[0].y[-1]) if picture is None else picture.size
    return Ground(panels, (float(size[0]), float(size[1])), carried(ds, image) if picture is None else _small(picture))


def _small(picture: Any) -> str:
    """A picture as figures carry it, however large it is; where its tokens lie is told by its own size."""
    small = picture.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    held = io.BytesIO()
    small.save(held, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode('ascii')}"


def carried(ds: xr.Dataset, image: int) -> str | None:
    """The thumbnail of an image that a result carries; None where what it carries is none."""
    try:
        address = json.loads(ds.attrs.get("pictures", "[]"))[image]
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    return address if isinstance(address, str) and JPEG.fullmatch(address) else None


def _panel(box: Float[np.ndarray, "token 4"], chosen: Bool[np.ndarray, " token"], title: str) -> Panel:
    token = np.flatnonzero(chosen)
    if not len(token):
        return Panel(title, token, np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.zeros((0, 4), int))
    left, top, right, bottom = box[token].T
    (x, from_x, to_x), (y, from_y, to_y) = _edges(left, right), _edges(top, bottom)
    span = np.stack([from_y, np.maximum(to_y, from_y + 1), from_x, np.maximum(to_x, from_x + 1)], -1)
    return Panel(title, token, x, y, span)


def _edges(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges of all cells along one side, and at which of them each token begins and ends."""
    every = np.concatenate([low, high])
    order = np.argsort(every, kind="stable")
    apart = NEAR * max(float(np.median(high - low)), 1e-6)
    number = np.empty(len(every), int)
    number[order] = np.concatenate([[0], np.cumsum(np.diff(every[order]) > apart)])
    edges = np.bincount(number, every) / np.bincount(number)
    if len(edges) == 1:  # tokens without a width
        edges = np.array([edges[0], edges[0] + 1])
    first = np.minimum(number[: len(low)], len(edges) - 2)
    return edges, first, number[len(low) :]
