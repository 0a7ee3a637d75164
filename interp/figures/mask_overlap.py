"""How alike the channel sets of heads, layers, prompts and moments are."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._theme import AMOUNT, BLUE, GREY, INK, ORANGE, finish, row_labels

RESULT = "masks"


def mask_overlap(ds: xr.Dataset) -> go.Figure:
    """Left, the Jaccard index of the channel sets of every two layers (mean over pairs of heads). Right, by layer: how
    alike the sets of its heads are, what is left of a set when it is chosen again later (drift), and between prompts
    where there are several. The dotted line is what two random sets of this size share.

    Args:
        ds: an answer to the question `masks` of `interp.explain`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.mask_overlap(results["masks"])
        >>> figure.layout.title.text
        'Sets of 4 of 8 channels of keys'
    """
    ds = need(ds, "mask_overlap", RESULT, "overlap_layers", "overlap_heads", "drift", "chance", kind="question")
    layers = [str(layer) for layer in ds["layer"].values]
    height = 560
    fig = make_subplots(
        1, 2, column_widths=[0.5, 0.5], horizontal_spacing=0.16,
        subplot_titles=["between layers", "by layer"],
    )  # fmt: skip
    fig.add_heatmap(
        z=ds["overlap_layers"].values.astype("float32"), x=layers, y=layers, coloraxis="coloraxis",
        hovertemplate="layers %{y} and %{x}<br>Jaccard index %{z:.2f}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    heads = ds.sizes["kv_head"]
    lines: list[tuple[str, np.ndarray, str, str]] = []
    if heads > 1:
        between = ds["overlap_heads"].values[:, ~np.eye(heads, dtype=bool)].mean(-1)
        lines.append(("two heads of the layer", between, INK, "solid"))
    steps = ds["checkpoint"].values
    for i, shade in zip({0, len(steps) - 1}, ("dot", "solid"), strict=False):
        drift = ds["drift"].isel(checkpoint=i).mean("kv_head").values
        lines.append((f"chosen again {steps[i]} tokens later", drift, ORANGE, shade if len(steps) > 1 else "solid"))
    prompts = ds.sizes["prompt"]
    if prompts > 1:
        other = ds["overlap_prompts"].values[..., ~np.eye(prompts, dtype=bool)].mean((-1, 1))
        lines.append((f"two of {prompts} prompts", other, BLUE, "solid"))
    for name, values, colour, dash in lines:
        hover = "layer %{x}<br>" + name + ": %{y:.2f}<extra></extra>"
        fig.add_scatter(
            x=layers, y=values.astype("float32"), name=name, mode="lines+markers", marker_size=5,
            line={"color": colour, "dash": dash}, hovertemplate=hover, row=1, col=2,
        )  # fmt: skip
    chance = float(ds["chance"])
    fig.add_hline(chance, row=1, col=2, line={"color": GREY, "dash": "dot"})
    fig.add_annotation(
        text="random sets", x=1, xref="x2 domain", y=chance, xanchor="right", yanchor="top", showarrow=False,
        row=1, col=2,
    )  # fmt: skip
    fig.update_xaxes(title_text="layer", type="category", nticks=12, row=1, col=1)
    fig.update_xaxes(title_text="layer", type="category", nticks=12, row=1, col=2)
    fig.update_yaxes(title_text="layer", autorange="reversed", type="category", row=1, col=1)
    fig.update_yaxes(**row_labels(layers, layers, height), row=1, col=1)
    fig.update_yaxes(title_text="Jaccard index", range=[0, 1.03], row=1, col=2)
    bar = {"title": {"text": "Jaccard index"}, "x": 0.43, "len": 0.9}
    off = ds["overlap_layers"].values[~np.eye(len(layers), dtype=bool)]
    low, high = (0.0, 1.0) if off.size == 0 else (float(off.min()), float(off.max()))
    fig.update_layout(coloraxis={"colorscale": AMOUNT, "cmin": low, "cmax": max(high, low + 1e-3), "colorbar": bar})
    of, kept = ds.attrs.get("of", "keys"), ds.attrs.get("kept_channels")
    title = f"Sets of {kept} of {ds.sizes['channel']} channels of {of}" if kept else f"Channels of {of} that are kept"
    return finish(fig, title, height).update_layout(margin_b=110)
