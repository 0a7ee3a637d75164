"""Whether sinks stay at their place or follow their content."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._theme import BLUE, GREY, ORANGE, finish

RESULT = "sink_kind"
KINDS = {"position": ("at the old place", BLUE), "content": ("where its content went", ORANGE),
         "chance": ("random tokens", GREY)}  # fmt: skip


def sink_kind(ds: xr.Dataset) -> go.Figure:
    """What becomes of sinks when the input is rearranged: how often one is again at the old place, how often one is
    where the content went, and what as many random tokens would give. Left over all layers and rearrangements, right by
    layer for each of them. Means over inputs with 95 % bootstrap limits, which need at least two inputs.

    Args:
        ds: a result of `interp.sink_kind`, of one input or several.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> kind = interp.sink_kind(lens, [prompt, "w9 w8 w7 w6"], transforms=["roll"], kept=0)
        >>> interp.figures.sink_kind(kind).layout.title.text
        'Do sinks stay at their place or follow their content? (2 texts)'
    """
    ds = need(
        ds,
        "sink_kind",
        RESULT,
        *(name for kind in KINDS for name in (kind, f"{kind}_all")),
        kind="function",
        texts=True,
    )
    transforms = [str(name) for name in ds["transform"].values]
    layers = ds["layer"].values
    fig = make_subplots(
        1, 1 + len(transforms), shared_yaxes=True, horizontal_spacing=0.03,
        column_widths=[0.24, *[0.76 / len(transforms)] * len(transforms)],
        subplot_titles=["over all", *transforms],
    )  # fmt: skip
    for kind, (name, colour) in KINDS.items():
        mean, low, high = (100 * one for one in _limits(ds, f"{kind}_all"))
        error = {"array": [float(high - mean)], "arrayminus": [float(mean - low)], "symmetric": False}
        fig.add_bar(
            x=[name], y=[float(mean)], marker_color=colour, showlegend=False,
            error_y=error if np.isfinite(high - low) else None,
            hovertemplate=f"{name}<br>%{{y:.1f}} %<extra></extra>", row=1, col=1,
        )  # fmt: skip
        for column, transform in enumerate(transforms, start=2):
            mean, low, high = (100 * one for one in _limits(ds.sel(transform=transform), kind))
            known = np.isfinite(high - low)
            band = {
                "mode": "lines",
                "line": {"width": 0},
                "hoverinfo": "skip",
                "showlegend": False,
                "legendgroup": kind,
            }
            if known.any():
                fig.add_scatter(**band, x=layers[known], y=low[known].astype("float32"), row=1, col=column)
                fig.add_scatter(
                    **band, x=layers[known], y=high[known].astype("float32"), fill="tonexty", fillcolor=_faint(colour),
                    row=1, col=column,
                )  # fmt: skip
            fig.add_scatter(
                x=layers, y=mean.astype("float32"), mode="lines+markers", marker={"size": 4}, name=name,
                line={"color": colour, "dash": "dot" if kind == "chance" else "solid"}, legendgroup=kind,
                showlegend=column == 2, hovertemplate=f"layer %{{x}}<br>{name}: %{{y:.1f}} %<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
    fig.update_yaxes(range=[0, 105], title_text="sinks that moved (%)", row=1, col=1)
    fig.update_xaxes(title_text="a sink is …", tickangle=-30, row=1, col=1)
    for column in range(2, 2 + len(transforms)):
        fig.update_xaxes(title_text="layer", row=1, col=column)
    number = ds.sizes.get("text", 1)
    of = f"{number:,} {ds.attrs.get('of', 'text')}{'s' * (number > 1)}"
    title = f"Do sinks stay at their place or follow their content? ({of})"
    return finish(fig, title, 440).update_layout(legend={"y": -0.42, "x": 0.28})


def _limits(ds: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and limits; NaN for limits that one input has none of."""
    mean = ds[f"{name}_mean" if f"{name}_mean" in ds else name].values
    names = [f"{name}_{side}" for side in ("low", "high")]
    low, high = (ds[limit].values if limit in ds else np.full(np.shape(mean), np.nan) for limit in names)
    return mean, low, high


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
