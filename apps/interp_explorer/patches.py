"""Patches of a picture, which are tokens: clicking on them, drawing a box around them, and writing them in a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import streamlit as st
import xarray as xr

from interp.errors import InterpError

FRAME = ({"color": "black", "width": 5}, {"color": "white", "width": 2})
"""Lines around a chosen patch, which show on any picture and any colours over it."""
MOST = 10_000  # tokens that a line may name


def read(text: str) -> list[int]:
    """Positions of tokens, written as in `17-20, 24`. Raises InterpError for anything else."""
    found: set[int] = set()
    for part in re.split(r"[\s,]+", text.strip()):
        if not part:
            continue
        ends = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if ends is None:
            raise InterpError(f"{part[:40]} names no patch; write positions of tokens, as in 17-20, 24.")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not first <= last < first + MOST:
            raise InterpError(f"{part} is no range of patches; write the smaller number first.")
        found |= set(range(first, last + 1))
    return sorted(found)


def written(positions: Sequence[int]) -> str:
    """The same the other way round, as short as it can be."""
    each = sorted(set(positions))
    starts = [each[0], *(after for before, after in pairwise(each) if after > before + 1)] if each else []
    ends = [*(before for before, after in pairwise(each) if after > before + 1), *each[-1:]]
    return ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True)
    )


def take(key: str) -> None:
    """Make the clicked patch, or those in the box, the chosen ones."""
    points = st.session_state[key]["selection"]["points"]
    if tokens := {int(np.ravel(point["customdata"])[0]) for point in points if "customdata" in point}:
        st.session_state["patches"] = written(sorted(tokens))


def with_targets(figure: go.Figure, ds: xr.Dataset, chosen: Sequence[int], said: Sequence[str]) -> go.Figure:
    """The figure with an invisible point in the middle of every patch, on each of its pictures, and frames around the
    chosen ones.

    ds: a result with `box` along its tokens. said: of each token, where the pointer is; plotly reads it as markup.
    """
    figure = go.Figure(figure)
    boxes = ds["box"].transpose("token", "side").values
    unseen = {"marker": {"opacity": 0.0}}
    for x, y, tokens in list(_panels(figure, ds)):
        left, top, right, bottom = boxes[tokens].T
        figure.add_scatter(
            x=(left + right) / 2, y=(top + bottom) / 2, customdata=tokens, text=[said[token] for token in tokens],
            mode="markers", marker={"size": 8, "opacity": 0.0}, selected=unseen, unselected=unseen, showlegend=False,
            hovertemplate="token %{customdata}<br>%{text}<extra></extra>", xaxis=x, yaxis=y,
        )  # fmt: skip
        for token in np.intersect1d(tokens, chosen):
            left, top, right, bottom = boxes[token]
            for line in FRAME:
                figure.add_shape(type="rect", x0=left, y0=top, x1=right, y1=bottom, xref=x, yref=y, line=line)
    figure.for_each_trace(lambda trace: trace.update(hoverinfo="skip", hovertemplate=None), {"type": "heatmap"})
    # a patch is hit wherever it is clicked; while pulling draws a box, Streamlit hears no clicks
    return figure.update_layout(hoverdistance=-1, hovermode="closest", dragmode=False)


def _panels(figure: go.Figure, ds: xr.Dataset) -> Iterator[tuple[str, str, np.ndarray]]:
    """Axes of each picture of a figure, and the tokens that lie on it: those that are coloured there, and on a picture
    without colours those that show it once."""
    coloured = {
        heat.xaxis or "x": np.unique(shown[np.isfinite(shown)]).astype(int)
        for heat in figure.select_traces({"type": "heatmap"})
        if (shown := np.asarray(heat.customdata, float)).size
    }
    once = next(iter(coloured.values()), np.flatnonzero(ds["modality"].values == "image"))
    for axis in figure.select_xaxes():
        x = axis.plotly_name.replace("axis", "")
        yield x, x.replace("x", "y"), coloured.get(x, once)
