"""What later tokens miss: attention to evicted tokens, or the errors of pruned channels."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._text import quoted
from interp.figures._theme import AMOUNT, BLUE, GREY, INK, ORANGE, finish, row_labels, rows_height, top_down

RESULT = "missed_mass"
OUTPUT = "error of the attention output"


def missed_mass(ds: xr.Dataset) -> go.Figure:
    """For a policy that evicts tokens: left, the attention that later tokens would have paid to what was evicted, by
    layer and head; right, its mean over heads beside the least that any choice of as many tokens would have missed, and
    each layer's most missed token. For one that only drops channels: the relative error of its logits (where it drops
    key channels), and that of the attention output.

    Args:
        ds: an answer to the question `missed_mass` of `interp.explain`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.missed_mass(results["missed_mass"])
        >>> figure.layout.title.text
        'Attention that was missed, mean over 5 steps'
    """
    ds = need(ds, "missed_mass", RESULT, "missed_mass", "least_missed", "missed_of_token", kind="question")
    evicts = bool((ds["missed_mass"] > 0).any()) or "logit_error" not in ds
    name, what = "missed_mass", "attention missed"
    if not evicts:
        of_keys = bool((ds["logit_error"] > 0).any()) or "output_error" not in ds
        name, what = ("logit_error", "relative logit error") if of_keys else ("output_error", OUTPUT)
    by_head = ds[name].mean("step").transpose("layer", "head").values.astype("float32")
    layers = [f"layer {layer}" for layer in ds["layer"].values]
    height = rows_height(len(layers), 21)
    titles = [what, "mean over heads"]
    fig = make_subplots(1, 2, column_widths=[0.5, 0.5], horizontal_spacing=0.03, subplot_titles=titles)
    fig.add_heatmap(
        z=by_head, x=ds["head"].values, y=layers, coloraxis="coloraxis", xgap=1, ygap=1,
        hovertemplate="%{y} · head %{x}<br>" + what + " %{z:.1%}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    shown = [(what, name, BLUE)]
    if evicts:
        shown.append(("least possible", "least_missed", GREY))
    if "output_error" in ds and name != "output_error":
        shown.append((OUTPUT, "output_error", ORANGE))
    for label, variable, colour in shown:
        values = ds[variable].mean(("head", "step")).values.astype("float32")
        fig.add_scatter(
            x=values, y=layers, name=label, mode="lines+markers", line={"color": colour}, marker_size=5,
            hovertemplate="%{y}<br>" + label + " %{x:.1%}<extra></extra>", row=1, col=2,
        )  # fmt: skip
    numbers = [str(layer) for layer in ds["layer"].values]
    fig.update_yaxes(**top_down(len(layers)))
    fig.update_yaxes(title_text="layer", **row_labels(numbers, layers, height), row=1, col=1)
    named = _most_missed(ds) if evicts else numbers
    fig.update_yaxes(side="right", **row_labels(named, layers, height), row=1, col=2)
    fig.update_yaxes(title_text="position and text of the most missed token" if evicts else "layer", row=1, col=2)
    fig.update_xaxes(title_text="head", showgrid=False, row=1, col=1)
    fig.update_xaxes(title_text="share", tickformat=".0%", rangemode="tozero", row=1, col=2)
    bar = {
        "title": {"text": what, "side": "top"}, "orientation": "h", "y": -60 / height, "yanchor": "top", "x": 0.0,
        "xanchor": "left", "len": 0.48, "tickformat": ".0%",
    }  # fmt: skip
    top = float(np.nanmax(by_head, initial=1e-6))
    fig.update_layout(
        coloraxis={"colorscale": AMOUNT, "cmin": 0, "cmax": top, "colorbar": bar},
        legend={"x": 0.52, "y": -60 / height, "font": {"color": INK}},
    )
    title = "Attention that was missed" if evicts else "What dropped channels cost a layer"
    return finish(fig, f"{title}, mean over {ds.sizes['step']} steps", height + 60).update_layout(margin_b=130)


def _most_missed(ds: xr.Dataset) -> list[str]:
    """Position and text of each layer's most missed token, nothing where none was evicted."""
    of_token = ds["missed_of_token"].transpose("layer", "token").values
    text = [str(t) for t in ds["token_text"].values]
    return [f"{row.argmax()} {quoted(text[row.argmax()], 12)}" if row.max() > 0 else "" for row in of_token]
