"""The text itself, every token coloured by the attention it receives."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale

from interp.figures._lines import LINE, line_ticks, set_in_lines, token_bars
from interp.figures._need import choose, need
from interp.figures._text import escape
from interp.figures._theme import decades, finish
from interp.results.ragged import mean_of_known

RESULT = "text_sinks"
SHOWN, LINES = 400, 60  # tokens and lines at most
FLOOR = -4.0
PALE_TO_DARK, UNKNOWN = "Blues", "#e3e5e8"


def token_mass(ds: xr.Dataset, layer: int | None = None, head: int | None = None, characters: int = LINE) -> go.Figure:
    """The text, each token on a ground as dark as the attention it receives, averaged over the queries that can see it
    (and over layers and heads, unless one is chosen). Grey tokens are seen by too few queries to say. Pointing at a
    token shows its numbers.

    Draws the first 400 tokens, or 60 lines.

    Args:
        ds: a result of the probe `text_sinks`.
        layer, head: coordinates to choose, None for the mean over all.
        characters: in a line, 104 fit at 1,000 pixels.

    Raises:
        FigureError: for another dataset or a head that it does not hold.

    Examples:
        >>> figure = interp.figures.token_mass(results["text_sinks"], layer=1)
        >>> figure.layout.title.text
        'Attention received, layer 1, 4 heads'
    """
    ds = need(ds, "token_mass", RESULT, "mean_received", "column_mass", "token_text")
    where = {d: choose(ds, d, v) for d, v in (("layer", layer), ("head", head)) if v is not None}
    tokens = [str(text) for text in ds["token_text"].values[:SHOWN]]
    column, line, shown = set_in_lines(tokens, LINES, characters)
    part = ds[["mean_received", "column_mass"]].sel(where).isel(token=slice(0, len(shown)))
    others = [d for d in ("layer", "head") if d not in where]
    among = tuple(part["mean_received"].get_axis_num(others))
    received = mean_of_known(part["mean_received"].values, among)  # tokens that too few queries see are NaN everywhere
    mass = part["column_mass"].mean(others).values

    with np.errstate(divide="ignore"):
        level = np.maximum(np.log10(received), FLOOR)
    highest = float(np.nanmax(level, initial=FLOOR + 1))
    depth = (level - FLOOR) / (highest - FLOOR)
    share = [
        f"{value:.3%} of attention" if np.isfinite(value) else "attention from too few queries" for value in received
    ]
    fig = go.Figure(_colour_bar_only(highest))
    bars = token_bars(
        column, line, shown, grounds=_grounds(depth), dark=depth > 0.55,
        customdata=np.array(list(zip(map(str, range(len(shown))), share, mass.astype(str), strict=True)), object),
        hovertext=[escape(token, 60) for token in tokens[: len(shown)]],
        hovertemplate="“%{hovertext}”<br>position %{customdata[0]}<br>receives %{customdata[1]}"
        "<br>column mass %{customdata[2]:.4~g} queries<extra></extra>",
    )  # fmt: skip
    fig.add_trace(bars)
    lines = int(line.max()) + 1
    height = lines * 20 + 190
    fig.update_yaxes(
        range=[lines - 0.4, -0.6],
        tickmode="array",
        **line_ticks(line),
        title_text="position of the line's first token",
    )
    fig.update_yaxes(showgrid=False, ticks="")
    fig.update_xaxes(range=[-0.3, characters + 0.3], showgrid=False, title_text="characters", showline=False)
    bar = {
        "title": {"text": "attention received", "side": "top"},
        "orientation": "h",
        "len": 0.5,
        "y": -70 / height,
        "yanchor": "top",
    }
    ticks = decades(FLOOR, 0, "%", scale=100)
    colours = {"colorscale": PALE_TO_DARK, "cmin": FLOOR, "cmax": highest, "colorbar": {**bar, **ticks}}
    fig.update_layout(coloraxis=colours, barmode="overlay", showlegend=False)
    title = f"Attention received, {_where(ds, where)}"
    if ds.sizes["token"] > len(shown):
        title += f" (first {len(shown)} of {ds.sizes['token']:,} tokens)"
    return finish(fig, title, height).update_layout(margin_b=130)


def _grounds(depth: np.ndarray) -> list[str]:
    """A colour for each token; grey where nothing is known."""
    known = np.isfinite(depth)
    colours = np.full(len(depth), UNKNOWN, object)
    if known.any():
        colours[known] = sample_colorscale(PALE_TO_DARK, depth[known])
    return colours.tolist()


def _colour_bar_only(highest: float) -> go.Scatter:
    """An empty trace that brings the colour bar: bars whose colours are numbers cannot choose their text's colour."""
    return go.Scatter(
        x=[None], y=[None], mode="markers", marker={"color": [highest], "coloraxis": "coloraxis"}, hoverinfo="skip"
    )


def _where(ds: xr.Dataset, where: dict[str, int]) -> str:
    layer = f"layer {where['layer']}" if "layer" in where else f"mean of {ds.sizes['layer']} layers"
    head = f"head {where['head']}" if "head" in where else f"{ds.sizes['head']} heads"
    return f"{layer}, {head}"
