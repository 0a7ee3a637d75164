"""The text behind an image, every token coloured by how much it looks at the image."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale

from interp.figures._lines import LINE, line_ticks, set_in_lines, token_bars
from interp.figures._need import choose, need
from interp.figures._patches import chosen_patches, given_attention
from interp.figures._text import escape
from interp.figures._theme import ORANGE, finish

RESULT = "image_attention"
LINES, FEWEST = 60, 4
"""Lines that are drawn, at most, and that there is room for, at least."""
PALE_TO_DARK = "Blues"
BELOW = 52
"""Pixels from the text down to the colour bar."""


def image_words(
    ds: xr.Dataset, query: int | None = None, layer: int | None = None, characters: int = LINE
) -> go.Figure:
    """The text behind an image, each token on a ground as dark as the share of its attention that it gives to the
    image, averaged over layers unless one is chosen. Pointing at a token shows its number.

    Draws 60 lines.

    Args:
        ds: a result of the probe `image_attention`.
        query: position of a token that gets a frame; None: none does.
        layer: a layer; None: the mean over all.
        characters: in a line, 104 fit at 1,000 pixels.

    Raises:
        FigureError: for another dataset, or a layer or token that it does not hold.

    Examples:
        >>> figure = interp.figures.image_words(results["image_attention"], layer=1)
        >>> figure.layout.title.text
        'How much each token looks at the image, layer 1'
    """
    ds = need(ds, "image_words", RESULT, "attention", "modality", "query_text")
    patches, _ = chosen_patches(ds, None)
    part, where = given_attention(ds, layer)
    tokens = [str(text) for text in ds["query_text"].values]
    column, line, shown = set_in_lines(tokens, LINES, characters)
    positions = ds["query"].values[: len(shown)]
    share = part.values[: len(shown), patches].sum(-1)
    most = float(share.max(initial=0.0)) or 1.0
    depth = np.clip(share / most, 0, 1)
    framed = np.zeros(len(shown), bool) if query is None else positions == choose(ds, "query", query)
    grounds = sample_colorscale(PALE_TO_DARK, depth) if len(shown) else []
    fig = go.Figure(
        token_bars(
            column, line, shown, grounds=grounds, dark=depth > 0.55,
            marker={"color": grounds, "line": {"width": np.where(framed, 2.5, 0.0), "color": ORANGE}},
            customdata=[[str(at), f"{value:.1%}"] for at, value in zip(positions, share, strict=True)],
            hovertext=[escape(token, 60) for token in tokens[: len(shown)]],
            hovertemplate="“%{hovertext}”<br>position %{customdata[0]}<br>gives %{customdata[1]} of its attention to "
            "the image<extra></extra>",
        )
    )  # fmt: skip
    fig.add_scatter(  # bars whose colours are numbers cannot choose their text's colour: this one brings the colour bar
        x=[None], y=[None], mode="markers", marker={"color": [0.0], "coloraxis": "coloraxis"}, hoverinfo="skip"
    )
    lines = max(int(line.max(initial=0)) + 1, FEWEST)
    ticks = line_ticks(line)
    ticks["ticktext"] = [str(positions[int(first)]) for first in ticks["ticktext"]]
    fig.update_yaxes(
        range=[lines - 0.4, -0.6], tickmode="array", **ticks, title_text="position", showgrid=False, ticks=""
    )
    fig.update_xaxes(range=[-0.3, characters + 0.3], showgrid=False, title_text="characters", showline=False)
    bar = {"title": {"text": "attention to the image", "side": "top"}, "orientation": "h", "len": 0.5}
    bar |= {"y": -BELOW / (20 * lines), "yanchor": "top", "tickformat": ".0%"}
    colours = {"colorscale": PALE_TO_DARK, "cmin": 0, "cmax": most, "colorbar": bar}
    fig.update_layout(coloraxis=colours, barmode="overlay", showlegend=False)
    return finish(fig, f"How much each token looks at the image, {where}", 20 * lines + 208).update_layout(margin_b=130)
