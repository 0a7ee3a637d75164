"""The picture with the attention of one token of text over it."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.figures._need import FigureError, choose, need
from interp.figures._picture import ground
from interp.figures._text import quoted
from interp.figures._theme import finish
from interp.results.many_texts import single

RESULT = "image_attention"
BESIDE = {"sinks": "visual_sinks"}
BRIGHTEST = 0.98
"""Which quantile of the tokens the brightest colour stands for where no sinks are given, so that one or two tokens do
not drown the rest."""


def image_attention(
    ds: xr.Dataset,
    query: int | str | None = None,
    layer: int | None = None,
    image: int = 0,
    picture: Any = None,
    head: int | None = None,
    sinks: xr.Dataset | None = None,
) -> go.Figure:
    """The image, and over it the attention that one token of text gives to each place: 1 is what an even spread of the
    same attention would give. Where a model sees the whole picture and parts of it, the parts are put together and the
    whole stands beside them. Frames mark sinks; the scale is that of the other tokens, so that sinks do not drown them.

    Args:
        ds: a result of the probe `image_attention`.
        query: the token that looks, its position or its text (the last one of that text); None: the last one.
        layer: a layer; None: the mean over all.
        image: the number of the image.
        picture: the picture itself (a PIL image); None: the small one that the result carries.
        head: a head, of results of `interp.ImageAttention(head="each")`; None: the mean over all that the result has.
        sinks: a result of the probe `visual_sinks` of the same text: which tokens are sinks, in this layer or, of all
            layers, in at least half of those in which any token is. None: none is marked, and colours end at the 98th
            percentile of the tokens.

    Raises:
        FigureError: for another dataset, or a layer, head, token or image that it does not hold, or sinks of another
            text.

    Examples:
        >>> figure = interp.figures.image_attention(results["image_attention"], layer=1)
        >>> figure.layout.title.text
        'Where token 19 “w3” looks, layer 1'
    """
    ds = need(ds, "image_attention", RESULT, "attention", "box")
    query, seen = looking(ds, query, layer, head)
    values = seen["attention"].values
    on = ground(ds, image, picture)
    is_sink = np.zeros(len(values), bool) if sinks is None else sinks_of(sinks, ds, layer)
    all_sinks = len(on.tokens) > 0 and bool(is_sink[on.tokens].all())
    aside = np.zeros_like(is_sink) if all_sinks else is_sink
    shown = [_times_even(panel.area, values[panel.token], ~aside[panel.token]) for panel in on.panels]
    rest = np.concatenate([times[~aside[panel.token]] for times, panel in zip(shown, on.panels, strict=True)])
    rest = rest[np.isfinite(rest)]
    top = 0.0 if not rest.size else float(rest.max() if aside[on.tokens].any() else np.quantile(rest, BRIGHTEST))
    bare = ["the picture"] if on.source is not None else []
    every = f"attention; all {len(on.tokens):,} tokens are sinks" if all_sinks else "attention"
    fig = on.start(*bare, *(panel.title or every for panel in on.panels))
    for column, (panel, times) in enumerate(zip(on.panels, shown, strict=True), start=1 + len(bare)):
        on.colour(fig, panel, times, "%{z:.3~g} times an even spread", column)
        on.frame(fig, panel, aside[panel.token], f"sinks, {aside[on.tokens].sum():,} of {len(on.tokens):,}", column)
    scale = {"colorscale": "Inferno", "cmin": 0, "cmax": top or 1.0, "colorbar": {"title": {"text": "times even"}}}
    fig.update_layout(coloraxis=scale)
    return finish(fig, f"Where token {query} {_named(ds, query)} looks, {_where(ds, layer, head)}", fig.layout.height)


def looking(ds: xr.Dataset, query: int | str | None, layer: int | None, head: int | None) -> tuple[int, xr.Dataset]:
    """The position of the token that looks, and the result at it: one layer or the mean, one head or the mean.

    Raises FigureError for what the result does not hold.
    """
    query = _query(ds, query)
    seen = ds[["attention"]].sel(query=query)
    seen = seen.mean("layer") if layer is None else seen.sel(layer=choose(ds, "layer", layer))
    if "head" in seen.dims:
        return query, seen.mean("head") if head is None else seen.sel(head=choose(ds, "head", head))
    held = str(ds.attrs.get("heads", "all"))
    if head is not None and held != str(head):
        has = "the mean over heads" if held == "all" else f"head {held}"
        raise FigureError(f'this result has {has} alone; probe with interp.ImageAttention(head="each") to choose one.')
    return query, seen


def _query(ds: xr.Dataset, query: int | str | None) -> int:
    if query is None:
        return int(ds["query"].values[-1])
    if not isinstance(query, str):
        return choose(ds, "query", query)
    texts = [str(text) for text in ds["query_text"].values]
    plain = [text.strip() for text in texts]
    at = [i for i, text in enumerate(texts) if text == query] or [i for i, t in enumerate(plain) if t == query.strip()]
    if not at:
        near = difflib.get_close_matches(query, plain, n=1)
        hint = f"the nearest is {quoted(near[0])}" if near else f"there are {', '.join(map(quoted, texts[-8:]))}"
        raise FigureError(f"no token that looks reads {quoted(query)}: {hint}.")
    return int(ds["query"].values[at[-1]])


def sinks_of(sinks: xr.Dataset, ds: xr.Dataset, layer: int | None) -> np.ndarray:
    """Which tokens of the text of `ds` are sinks: in a layer, or in half of the layers in which any is.

    Raises FigureError where `sinks` is no result of `visual_sinks` of the same text.
    """
    sinks = single(need(sinks, "image_attention", "visual_sinks", "is_sink"))
    same = sinks.sizes["token"] == ds.sizes["token"] and (sinks["token_text"].values == ds["token_text"].values).all()
    if not same or sinks.attrs.get("pictures") != ds.attrs.get("pictures"):
        raise FigureError("these sinks are of another text or image; probe both in one call of interp.probe.")
    found: np.ndarray = sinks["is_sink"].transpose("layer", "token").values > 0
    if layer is not None:
        at = sinks["layer"].values.tolist().index(choose(sinks, "layer", layer))
        return np.asarray(found[at])
    layers = found.any(1)
    return np.asarray(found[layers].mean(0) >= 0.5 if layers.any() else found.any(0))


def _times_even(area: np.ndarray, values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Attention for its share of the picture, in units of what an even spread over the counted tokens would give."""
    even = values[counted].sum() / area[counted].sum() if counted.any() else 0.0
    return values / area / even if even > 0 else np.zeros(len(values))


def _named(ds: xr.Dataset, query: int) -> str:
    return quoted(str(ds["query_text"].sel(query=query).values))


def _where(ds: xr.Dataset, layer: int | None, head: int | None) -> str:
    held = str(ds.attrs.get("heads", "all"))
    one = head if head is not None else held if held.isdecimal() else None
    where = f"mean of {ds.sizes['layer']} layers" if layer is None else f"layer {layer}"
    return where if one is None else f"{where}, head {one}"
