"""What each part of the picture is read as, by the logit lens."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.figures._need import choose, need
from interp.figures._picture import WIDTH, Ground, Panel, ground
from interp.figures._text import escape, quoted
from interp.figures._theme import AMOUNT, finish

RESULT = "image_logit_lens"
LETTER = 6.6
"""Pixels that a letter of 11 takes."""
LOWEST = 0.05
"""Probability that the brightest colour stands for at least."""
LEAST = 3
"""Letters of a word that a cell has room for, or words are left to pointing."""


def image_logit_lens(ds: xr.Dataset, layer: int | None = None, image: int = 0, picture: Any = None) -> go.Figure:
    """The picture, and over each place the word that the residual stream there stands for after one layer, by the
    model's own unembedding; colours say how probable it is. Unless a layer is chosen, the last
    one, whose words are the model's predictions there.
    Pointing at a place shows its first words.

    Args:
        ds: a result of the probe `image_logit_lens`.
        layer: a layer; None: the last one.
        image: the number of the image.
        picture: the picture itself (a PIL image); None: the small one that the result carries.

    Raises:
        FigureError: for another dataset, or a layer or image that it does not hold.

    Examples:
        >>> figure = interp.figures.image_logit_lens(results["image_logit_lens"], layer=1)
        >>> figure.layout.title.text
        'What each place is read as after layer 1'
    """
    ds = need(ds, "image_logit_lens", RESULT, "word", "probability", "lift", "box")
    on = ground(ds, image, picture)
    layer = int(ds["layer"].values[-1]) if layer is None else choose(ds, "layer", layer)
    one = ds[["word", "probability", "lift"]].sel(layer=layer).transpose("token", "rank")
    words, probability, lift = (one[name].values for name in ("word", "probability", "lift"))
    bare = ["the picture"] if on.source is not None else []
    fig = on.start(*bare, *(panel.title or "words" for panel in on.panels))
    for column, panel in enumerate(on.panels, start=1 + len(bare)):
        each = zip(words[panel.token], probability[panel.token], lift[panel.token], strict=True)
        told = np.array([_told(*one) for one in each], dtype=object)
        on.colour(fig, panel, probability[panel.token, 0], "%{text}", column, text=told)
        _write(fig, on, panel, words[panel.token, 0], column, len(bare) + len(on.panels))
    top = float(np.nanmax(probability[on.tokens, 0], initial=LOWEST))
    fig.update_layout(
        coloraxis={"colorscale": AMOUNT, "cmin": 0, "cmax": top, "colorbar": {"title": {"text": "probability"}}}
    )
    return finish(fig, f"What each place is read as after layer {layer}", fig.layout.height)


def _told(words: np.ndarray, probability: np.ndarray, lift: np.ndarray) -> str:
    """The words of a token for pointing at it."""
    return "<br>".join(
        f"{quoted(str(word))} {p:.1%}, {times:.3g} times its mean over the picture"
        for word, p, times in zip(words, probability, lift, strict=True)
    )


def _write(fig: go.Figure, on: Ground, panel: Panel, words: np.ndarray, column: int, columns: int) -> None:
    """Write each token's word into its cells, where there is room for some letters of it."""
    left, top, right, bottom = panel.boxes.T
    room = ((right - left) * WIDTH / columns / on.size[0] / LETTER).astype(int)
    wide = room >= LEAST
    shown = [
        escape(str(word).strip() or str(word), most=int(r)) for word, r in zip(words[wide], room[wide], strict=True)
    ]
    fig.add_scatter(
        x=((left + right) / 2)[wide].astype("float32"), y=((top + bottom) / 2)[wide].astype("float32"), text=shown,
        mode="text", textfont={"size": 11, "color": "white", "shadow": "0 0 3px black, 0 0 2px black"},
        hoverinfo="skip", showlegend=False, row=1, col=column,
    )  # fmt: skip
