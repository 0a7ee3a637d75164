"""The picture with the attention of one token of text over it."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import FigureError, choose, need
from interp.figures._text import quoted
from interp.figures._theme import finish

RESULT = "image_attention"
JPEG = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+=*")
FINEST = 160
"""Cells across the longer side at most."""
BRIGHTEST = 0.98
"""Which quantile of the cells the brightest colour stands for, so that a sink or two do not drown the rest."""


def image_attention(
    ds: xr.Dataset, query: int | None = None, layer: int | None = None, image: int = 0, picture: Any = None
) -> go.Figure:
    """The image, each place as bright as the attention that one token of text gives to it, for its share of the
    picture. Colours end at the 98th percentile, so that sinks do not drown the rest. Where a model sees the whole
    picture and parts of it, tiles are put together on the left and the whole stands on the right.

    Args:
        ds: a result of the probe `image_attention`.
        query: position of the token that looks; None: the last one.
        layer: a layer; None: the mean over all.
        image: the number of the image.
        picture: the picture itself (a PIL image); None: the small one that the result carries.

    Raises:
        FigureError: for another dataset, or a layer, token or image that it does not hold.

    Examples:
        >>> figure = interp.figures.image_attention(results["image_attention"], layer=1)
        >>> figure.layout.title.text
        'Where token 19 “w3” looks, layer 1'
    """
    ds = need(ds, "image_attention", RESULT, "attention", "box")
    query = int(ds["query"].values[-1]) if query is None else choose(ds, "query", query)
    part = ds["attention"].sel(query=query)
    values = (part.mean("layer") if layer is None else part.sel(layer=choose(ds, "layer", layer))).values
    box, of = ds["box"].values, ds["image"].values
    placed = np.isfinite(box[:, 0])
    if placed.any() and image not in of[placed]:
        raise FigureError(f"there is no image {image} in this result, which has {int(of[placed].max()) + 1}.")
    here = placed & (of == image)
    size = _size(box[here], picture)
    source = _carried(ds, image) if picture is None else picture
    whole = here & (ds["view"].values == "whole")
    panels = [("all of it", here)] if whole.sum() in (0, here.sum()) else [("parts", here & ~whole), ("whole", whole)]
    planes = [_plane(box[chosen], values[chosen], size) for _, chosen in panels]
    top = max(float(np.quantile(plane, BRIGHTEST)) if plane.size else 0.0 for plane in planes) or 1.0
    fig = make_subplots(cols=len(panels), subplot_titles=[name for name, _ in panels] if len(panels) > 1 else None)
    for column, plane in enumerate(planes, start=1):
        rows, columns = plane.shape
        fig.add_heatmap(
            z=plane, x=_middles(size[0], columns), y=_middles(size[1], rows), coloraxis="coloraxis", row=1, col=column,
            opacity=1.0 if source is None else 0.6,
            hovertemplate="x %{x:.0f}, y %{y:.0f}<br>%{z:.3~g} times an even spread<extra></extra>",
        )  # fmt: skip
        fig.update_xaxes(range=[0, size[0]], constrain="domain", showgrid=False, title_text="pixels", row=1, col=column)
        fig.update_yaxes(
            range=[size[1], 0], scaleanchor=f"x{column if column > 1 else ''}", constrain="domain", showgrid=False,
            title_text="pixels", row=1, col=column,
        )  # fmt: skip
        if source is not None:
            fig.add_layout_image(
                source=source, xref=f"x{column}", yref=f"y{column}", x=0, y=0, sizex=size[0], sizey=size[1],
                sizing="stretch", layer="below",
            )  # fmt: skip
    fig.update_layout(
        coloraxis={"colorscale": "Inferno", "cmin": 0, "cmax": top, "colorbar": {"title": {"text": "times even"}}}
    )
    text = str(ds["query_text"].sel(query=query).values)
    where = f"mean of {ds.sizes['layer']} layers" if layer is None else f"layer {layer}"
    return finish(fig, f"Where token {query} {quoted(text)} looks, {where}", 520)


def _carried(ds: xr.Dataset, image: int) -> str | None:
    """The thumbnail of an image that a result carries; None where what it carries is none."""
    try:
        address = json.loads(ds.attrs.get("pictures", "[]"))[image]
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    return address if isinstance(address, str) and JPEG.fullmatch(address) else None


def _size(boxes: np.ndarray, picture: Any) -> tuple[float, float]:
    """Width and height of the picture, from the picture or from where tokens end."""
    if picture is not None:
        width, height = picture.size
        return float(width), float(height)
    return (float(boxes[:, 2].max()), float(boxes[:, 3].max())) if len(boxes) else (1.0, 1.0)


def _plane(boxes: np.ndarray, values: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Attention for each cell of the picture, in units of what an even spread of the same attention would give."""
    fine = FINEST / max(size)
    plane = np.zeros((max(1, round(size[1] * fine)), max(1, round(size[0] * fine))), "float32")
    for (left, top, right, bottom), value in zip(boxes * fine, values, strict=True):
        rows = slice(round(top), max(round(bottom), round(top) + 1))
        columns = slice(round(left), max(round(right), round(left) + 1))
        plane[rows, columns] = value / max(plane[rows, columns].size, 1)
    total = float(plane.sum())
    return plane / (total / plane.size) if total > 0 else plane


def _middles(length: float, cells: int) -> np.ndarray:
    return ((np.arange(cells) + 0.5) * length / cells).astype("float32")
