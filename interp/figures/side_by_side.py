"""Two continuations of one prompt, each token coloured by what an intervention makes of its probability."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from interp.figures._lines import LINE, line_ticks, set_in_lines, token_bars
from interp.figures._need import need
from interp.figures._theme import INK, SIGNED, finish

RESULT = "side_by_side"
LINES, FEWEST = 40, 4  # of each text: what is drawn at most, and what there is room for at least
WIDEST = 3.0  # nats at which colours stop
UNKNOWN = "#e3e5e8"
TITLES = {"unchanged": "the model as it is writes", "intervened": "with the intervention it writes"}


def side_by_side(ds: xr.Dataset, characters: int = LINE) -> go.Figure:
    """What a model writes without (above) and with an intervention (below). A token's ground says how the intervention
    shifts its log-probability: red tokens become more likely, blue ones less. The first token at which the texts differ
    has a frame. Pointing at a token shows its numbers.

    Args:
        ds: a result of `interp.side_by_side`.
        characters: in a line, 104 fit at 1,000 pixels.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.side_by_side(results["side_by_side"], characters=80)
        >>> figure.layout.title.text
        'Side by side'
    """
    ds = need(ds, "side_by_side", RESULT, "token_text", "token_id", "logprob", "shift", kind="function")
    sides = ds["side"].values.tolist()
    placed = [set_in_lines([str(text) for text, at in _tokens(ds, side)], LINES, characters) for side in sides]
    heights = [max(int(line.max(initial=0)) + 1, FEWEST) for _, line, _ in placed]
    fig = make_subplots(
        len(sides), 1, subplot_titles=[TITLES.get(side, side) for side in sides], row_heights=heights,
        vertical_spacing=70 / (20 * sum(heights) + 260),
    )  # fmt: skip
    for row, (side, (column, line, shown)) in enumerate(zip(sides, placed, strict=True), start=1):
        _draw(fig, row, ds.sel(side=side), column, line, shown)
        fig.update_yaxes(
            range=[heights[row - 1] - 0.4, -0.6], showgrid=False, ticks="", tickmode="array", **line_ticks(line),
            title_text="new token", row=row, col=1,
        )  # fmt: skip
        last = row == len(sides)
        fig.update_xaxes(
            range=[-0.3, characters + 0.3], showgrid=False, showline=False, showticklabels=last,
            ticks="outside" if last else "", title_text="characters" if last else "", row=row, col=1,
        )  # fmt: skip
    height = 20 * sum(heights) + 260
    bar = {"orientation": "h", "len": 0.5, "y": -62 / (height - 218), "yanchor": "top"}
    colours = {"colorscale": SIGNED, "cmin": -WIDEST, "cmax": WIDEST}
    colours["colorbar"] = {"title": {"text": "shift of log-probability (nats)", "side": "top"}, **bar}
    fig.add_scatter(
        x=[None], y=[None], mode="markers", marker={"color": [0.0], "coloraxis": "coloraxis"}, hoverinfo="skip"
    )
    fig.update_layout(coloraxis=colours, barmode="overlay", showlegend=False)
    return finish(fig, "Side by side", height).update_layout(margin_b=140)


def _tokens(ds: xr.Dataset, side: str) -> list[tuple[str, int]]:
    """(text, id) of a side's tokens, without the padding at its end."""
    one = ds.sel(side=side)
    return [(t, i) for t, i in zip(one["token_text"].values, one["token_id"].values, strict=True) if i >= 0]


def _draw(fig: go.Figure, row: int, one: xr.Dataset, column: np.ndarray, line: np.ndarray, shown: list[str]) -> None:
    shift = one["shift"].values[: len(shown)]
    logprob = one["logprob"].transpose("step", "by").values[: len(shown)]
    known = np.isfinite(shift)
    grounds = np.full(len(shown), UNKNOWN, object)
    depth = np.clip((shift + WIDEST) / (2 * WIDEST), 0, 1)
    grounds[known] = sample_colorscale(SIGNED, depth[known]) if known.any() else []
    first = int(one.attrs.get("first_divergence", -1))
    frame = np.where(np.arange(len(shown)) == first, 2.5, 0.0)
    bars = token_bars(
        column, line, shown, grounds=grounds.tolist(), dark=np.abs(depth - 0.5) > 0.33,
        marker={"color": grounds.tolist(), "line": {"width": frame, "color": INK}},
        customdata=np.array([[str(i), f"{s:+.2f}", *(f"{np.exp(p):.2%}" for p in both)]
                             for i, (s, both) in enumerate(zip(shift, logprob, strict=True))], object).reshape(-1, 4),
        hovertemplate="new token %{customdata[0]}<br>probability %{customdata[2]} unchanged, "
        "%{customdata[3]} with the intervention<br>shift %{customdata[1]} nats<extra></extra>",
    )  # fmt: skip
    fig.add_trace(bars, row=row, col=1)
