"""What an edit does to where one token of text looks, over the picture."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.figures._need import need
from interp.figures._picture import ground
from interp.figures._text import escape, quoted
from interp.figures._theme import SIGNED, finish
from interp.figures.image_attention import BRIGHTEST, looking

RESULT = "before_after"


def image_attention_change(
    ds: xr.Dataset,
    query: int | str | None = None,
    layer: int | None = None,
    image: int = 0,
    picture: Any = None,
    head: int | None = None,
) -> go.Figure:
    """The attention of one token of text to the image before and after an edit, on one scale, and the difference: red
    where the edit adds attention, blue where it takes some. In per cent of the row's attention, for each token of the
    image's mean size; the titles say what the whole picture gets.

    Args:
        ds: two results of `image_attention`, joined by `interp.before_after(before, after)`.
        query: the token that looks, its position or its text (the last one of that text); None: the last one.
        layer: a layer; None: the mean over all.
        image: the number of the image.
        picture: the picture itself (a PIL image); None: the small one that the result carries.
        head: a head, of results of `interp.ImageAttention(head="each")`; None: the mean over all that the result has.

    Raises:
        FigureError: for another dataset, or a layer, head, token or image that it does not hold.

    Examples:
        >>> both = interp.before_after(results["image_attention"], results["image_attention"])
        >>> figure = interp.figures.image_attention_change(both, layer=1)
        >>> figure.layout.title.text
        'Where token 19 “w3” looks before and after nothing, layer 1'
    """
    ds = need(ds, "image_attention_change", RESULT, "attention", "box", "edited", kind="function")
    query, seen = looking(ds, query, layer, head)
    sides = seen["attention"].transpose("edited", "token").values * 100
    on = ground(ds, image, picture)
    scaled = [panel.area.sum() / max(len(panel.area), 1) / panel.area for panel in on.panels]
    before, after = ([side[panel.token] * by for panel, by in zip(on.panels, scaled, strict=True)] for side in sides)
    change = [b - a for a, b in zip(before, after, strict=True)]
    masses = sides[:, on.tokens].sum(1)
    titles = [
        f"before: {masses[0]:.1f} % on the picture",
        f"after: {masses[1]:.1f} %",
        f"change: {masses[1] - masses[0]:+.1f} points",
    ]
    fig = on.start(*titles, rows=len(on.panels))
    for row, panel in enumerate(on.panels, start=1):
        for column, (values, axis, said) in enumerate(
            (
                (before, "coloraxis", "%{z:.3~g} %"),
                (after, "coloraxis", "%{z:.3~g} %"),
                (change, "coloraxis2", "%{z:+.3~g} points"),
            ),
            start=1,
        ):
            on.colour(fig, panel, values[row - 1], said, column, row, axis)
        if panel.title:
            fig.update_yaxes(title_text=panel.title, row=row, col=1)
    both = np.concatenate([np.concatenate(before), np.concatenate(after)])
    top = float(np.nanquantile(both, BRIGHTEST)) if both.size else 0.0
    most = float(np.nanmax(np.abs(np.concatenate(change)), initial=0.0))
    bar = {"thickness": 14, "len": 0.45, "yanchor": "top"}
    fig.update_layout(
        coloraxis={"colorscale": "Inferno", "cmin": 0, "cmax": top or 1.0,
                   "colorbar": {**bar, "y": 1.0, "title": {"text": "% of<br>attention"}}},
        coloraxis2={"colorscale": SIGNED, "cmin": -(most or 1.0), "cmax": most or 1.0,
                    "colorbar": {**bar, "y": 0.45, "title": {"text": "change<br>(points)"}}},
    )  # fmt: skip
    where = f"mean of {ds.sizes['layer']} layers" if layer is None else f"layer {layer}"
    where = where if head is None else f"{where}, head {head}"
    token = quoted(str(ds["query_text"].sel(query=query).values))
    title = f"Where token {query} {token} looks before and after {_edits(ds)}, {where}"
    return finish(fig, title, fig.layout.height)


def _edits(ds: xr.Dataset) -> str:
    """The names of the edits in force after and not before; what else a result says is no title."""
    try:
        sides = [json.loads(str(ds.attrs.get(side, "[]"))) for side in ("before", "after")]
        names = [str(edit["name"]) for edit in sides[1] if edit not in sides[0]]
    except (LookupError, TypeError, ValueError, RecursionError):
        return "an edit"
    return escape(", ".join(names), 40) if names else "nothing"
