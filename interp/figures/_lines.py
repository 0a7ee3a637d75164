"""A text set in lines of a fixed width, token by token, each on a ground of its own colour."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.figures._text import escape, visible
from interp.figures._theme import INK, MONO

LINE = 104  # characters that fit side by side at 1000 px


def set_in_lines(tokens: list[str], most: int, length: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Column and line of each token when the text is set in lines of `length` characters, and how it is written there.

    Ends after `most` lines.
    """
    column, line, shown = [], [], []
    x = y = 0
    for token in tokens:
        written = visible(token, length) or "∅"
        if x and x + width(written) > length:
            x, y = 0, y + 1
        if y == most:
            break
        column.append(x)
        line.append(y)
        shown.append(written)
        x += width(written)
        if "\n" in token:
            x, y = 0, y + 1
    return np.array(column, "int16"), np.array(line, "int16"), shown


def width(text: str) -> int:
    """Columns that `text` takes in a monospaced font: two for wide characters, none for combining ones."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def line_ticks(line: np.ndarray) -> dict[str, list[Any]]:
    """Every line labelled with the position of its first token, as far as there is room."""
    first = np.flatnonzero(np.diff(line, prepend=-1))
    return {"tickvals": line[first].tolist(), "ticktext": first.astype(str).tolist()}


def token_bars(
    column: np.ndarray, line: np.ndarray, shown: list[str], *, grounds: list[str], dark: np.ndarray, **more: Any
) -> go.Bar:
    """A bar for each token where `set_in_lines` puts it; letters are white on grounds that are `dark`."""
    return go.Bar(
        orientation="h", base=column, x=np.array([width(text) for text in shown], "int16"), y=line, width=0.9,
        text=[escape(text) for text in shown], textposition="inside", insidetextanchor="middle", constraintext="none",
        textangle=0, insidetextfont={"family": MONO, "size": 12, "color": np.where(dark, "white", INK)},
        **{"marker": {"color": grounds, "line": {"width": 0}}, **more},
    )  # fmt: skip
