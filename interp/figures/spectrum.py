"""Singular values of attention patterns and of the scores before softmax, all heads at once."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import FigureError, choose, need
from interp.figures._theme import BLUE, INK, ORANGE, finish

RESULT = "attention_rank"
CURVES = 300  # drawn one by one; of more heads, evenly spaced ones (median and band always use all)


def spectrum(ds: xr.Dataset, layer: int | None = None, head: int | None = None) -> go.Figure:
    """Above, the singular values of every head's attention pattern and the share of its energy (sum of squares) that
    the leading ones hold; below, the same for the scores before softmax, whose rank cannot exceed the head dimension.
    Thin lines are heads, the thick line is their median, the band holds 80 % of them; a chosen head is dashed.

    Args:
        ds: a result of the probe `attention_rank`.
        layer, head: coordinates of one head to draw on top, both or none.

    Raises:
        FigureError: for any other dataset, or a head that it does not hold.

    Examples:
        >>> figure = interp.figures.spectrum(results["attention_rank"], layer=1, head=0)
        >>> figure.layout.title.text
        'Spectra of 12 attention heads, and layer 1 head 0'
    """
    ds = need(ds, "spectrum", RESULT, "singular_value", "energy", "score_singular_value", "score_energy")
    if (layer is None) != (head is None):
        raise FigureError("figure spectrum draws one head on top where both layer and head are given; give both.")
    one = None
    if layer is not None and head is not None:
        one = {"layer": choose(ds, "layer", layer), "head": choose(ds, "head", head)}
    titles = ["pattern: singular values", "pattern: energy held", "scores: singular values", "scores: energy held"]
    fig = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.1)
    for row, (prefix, dimension, colour) in enumerate(
        (("", "component", BLUE), ("score_", "channel", ORANGE)), start=1
    ):
        sigma = _curves(ds[f"{prefix}singular_value"], dimension)
        energy = _curves(ds[f"{prefix}energy"], dimension)
        largest = sigma[:, :1]
        _draw(fig, row, 1, sigma / np.where(largest > 0, largest, np.nan), colour)
        _draw(fig, row, 2, energy, colour)
        if one is not None:
            alone = ds[f"{prefix}singular_value"].sel(one).values
            _draw_one(fig, row, 1, alone / alone[0] if alone[0] > 0 else alone, one)
            _draw_one(fig, row, 2, ds[f"{prefix}energy"].sel(one).values, one)
        fig.update_xaxes(title_text="singular value number", rangemode="tozero", row=row)
        fig.update_yaxes(
            title_text="σ<sub>i</sub> / σ<sub>1</sub>", type="log", exponentformat="e", dtick=1, row=row, col=1
        )
        fig.update_yaxes(
            title_text="share of Σσ²", tickformat=".0%", tickvals=[0, 0.3, 0.6, 0.9, 1], range=[0, 1.05],
            row=row, col=2,
        )  # fmt: skip
        fig.add_hline(0.9, row=row, col=2, line={"color": INK, "dash": "dash", "width": 1})
    _floor_log_axes(fig, ds)
    bound = ds.sizes["channel"]
    for column in (1, 2):
        fig.add_vline(bound, row=2, col=column, line={"color": INK, "dash": "dot", "width": 1.5})
    fig.add_annotation(
        text=f"rank ≤ head dimension {bound}",
        x=bound,
        y=0.04,
        showarrow=False,
        xanchor="right",
        xshift=-4,
        row=2,
        col=2,
    )
    fig.update_layout(showlegend=False)
    heads = ds.sizes["layer"] * ds.sizes["head"]
    fig = finish(fig, f"Spectra of {heads:,} attention heads", 760)
    if one is not None:
        fig.update_layout(title_text=f"{fig.layout.title.text}, and layer {layer} head {head}")
    return fig.update_annotations(font_size=12)


def _curves(variable: xr.DataArray, dimension: str) -> np.ndarray:
    """One row a head, `[layer * head, dimension]`, float32."""
    values = variable.transpose("layer", "head", dimension).values
    return values.reshape(-1, values.shape[-1]).astype("float32")


def _draw(fig: go.Figure, row: int, column: int, curves: np.ndarray, colour: str) -> None:
    """Single heads as one broken line, then band and median over all heads."""
    count = curves.shape[1]
    number = np.arange(1, count + 1, dtype="int16")
    shown = curves[:: int(np.ceil(len(curves) / CURVES))]
    with_gaps = np.concatenate([shown, np.full((len(shown), 1), np.nan, "float32")], axis=1)
    x = np.tile(np.append(number, count).astype("int16"), len(shown))
    thin = {"color": colour, "width": 0.6}
    fig.add_scatter(
        x=x, y=with_gaps.ravel(), mode="lines", line=thin, opacity=0.22, hoverinfo="skip", row=row, col=column
    )
    low, middle, high = np.nanquantile(curves, [0.1, 0.5, 0.9], axis=0).astype("float32")
    band = {"x": np.concatenate([number, number[::-1]]), "y": np.concatenate([high, low[::-1]])}
    fig.add_scatter(
        **band, fill="toself", mode="none", opacity=0.25, fillcolor=colour, hoverinfo="skip", row=row, col=column
    )
    fig.add_scatter(
        x=number,
        y=middle,
        mode="lines",
        line={"color": colour, "width": 3},
        customdata=np.stack([low, high], axis=1),
        hovertemplate="%{x}: median %{y:.3~g}<br>"
        "80 % of heads from %{customdata[0]:.3~g} to %{customdata[1]:.3~g}<extra></extra>",
        row=row,
        col=column,
    )


def _draw_one(fig: go.Figure, row: int, column: int, curve: np.ndarray, one: dict[str, int]) -> None:
    fig.add_scatter(
        x=np.arange(1, len(curve) + 1, dtype="int16"),
        y=curve.astype("float32"),
        mode="lines",
        line={"color": INK, "width": 2.5, "dash": "dash"},
        hovertemplate=f"layer {one['layer']} · head {one['head']}<br>%{{x}}: %{{y:.3~g}}<extra></extra>",
        row=row,
        col=column,
    )


def _floor_log_axes(fig: go.Figure, ds: xr.Dataset) -> None:
    """Ends the logarithmic axes at 1e-6: what lies below is rounding."""
    for row, (name, dimension) in enumerate(
        (("singular_value", "component"), ("score_singular_value", "channel")), start=1
    ):
        sigma = _curves(ds[name], dimension)
        positive = (sigma / np.where(sigma[:, :1] > 0, sigma[:, :1], np.nan))[sigma > 0]
        smallest = float(np.nanmin(positive, initial=0.1))
        fig.update_yaxes(range=[max(np.floor(np.log10(smallest)), -6), 0.1], row=row, col=1)
