"""How the prediction forms: the logit lens by layer, and what each layer and head adds to it."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._text import quoted
from interp.figures._theme import BLUE, GREY, INK, ORANGE, SIGNED, finish, row_labels, rows_height, top_down

RESULT = "logit_lens"


def logit_lens(ds: xr.Dataset) -> go.Figure:
    """From left: the probability and the rank that the residual stream after each layer already gives to the model's
    final prediction, with the token it would predict there; and what each layer's attention and MLP, and each head,
    adds directly to the logit of that prediction over the runner-up's.

    Args:
        ds: a result of the probe `logit_lens`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.logit_lens(results["logit_lens"])
        >>> figure.layout.title.text
        'Logit lens and direct attribution to the final prediction'
    """
    ds = need(ds, "logit_lens", RESULT, "lens_probability", "lens_rank", "lens_top_token", "head_attribution")
    height = rows_height(ds.sizes["layer"], 21)
    layers = [f"layer {layer}" for layer in ds["layer"].values]
    tokens = [quoted(str(text), 14) for text in ds["lens_top_token"].values]
    titles = ["probability", "rank", "layer's attribution", "head's attribution"]
    fig = make_subplots(
        1, 4, shared_yaxes=True, horizontal_spacing=0.025, column_widths=[0.22, 0.2, 0.28, 0.3], subplot_titles=titles
    )
    divergence = ds["kl_to_final"].values.astype("float32") if "kl_to_final" in ds else np.full(len(layers), np.nan)
    line = {
        "y": layers,
        "text": tokens,
        "hovertext": layers,
        "customdata": divergence,
        "line": {"color": INK},
        "mode": "lines+markers",
        "marker": {"size": 6},
        "showlegend": False,
    }
    about = "<br>top token %{text}<br>KL to the final prediction %{customdata:.3~g} nats<extra></extra>"
    probability = ds["lens_probability"].values.astype("float32")
    rank = ds["lens_rank"].values
    fig.add_scatter(**line, x=probability, hovertemplate="%{hovertext}<br>probability %{x:.3~%}" + about, row=1, col=1)
    fig.add_scatter(**line, x=rank, hovertemplate="%{hovertext}<br>rank %{x}" + about, row=1, col=2)
    parts = [("attention", "attention", BLUE), ("mlp", "MLP", ORANGE)]
    if "mixer_attribution" in ds:  # hybrids: what stands in attention's place
        parts.insert(1, ("mixer", "mixer", GREY))
    for name, label, colour in parts:
        values = ds[f"{name}_attribution"].values.astype("float32")
        bars = {
            "x": values,
            "y": layers,
            "hovertext": layers,
            "orientation": "h",
            "marker_color": colour,
            "name": label,
        }
        hover = "%{hovertext}<br>" + label + " %{x:+.3~f} logits<extra></extra>"
        fig.add_bar(**bars, hovertemplate=hover, row=1, col=3)
    heads = ds["head_attribution"].transpose("layer", "head").values.astype("float32")
    hover = "%{y} · head %{x}<br>%{z:+.3~f} logits<extra></extra>"
    fig.add_heatmap(
        z=heads, x=ds["head"].values, y=layers, coloraxis="coloraxis", hovertemplate=hover, xgap=1, ygap=1, row=1, col=4
    )

    numbers = [f"{token}  {layer}" for layer, token in zip(ds["layer"].values, tokens, strict=True)]
    fig.update_yaxes(**top_down(len(layers)), **row_labels(numbers, layers, height))
    fig.update_yaxes(title_text="top token and layer", row=1, col=1)
    fig.update_xaxes(title_text="probability", range=[-0.04, 1.04], tickformat=".0%", nticks=4, row=1, col=1)
    fig.update_xaxes(
        title_text="rank (1 is top)",
        type="log",
        dtick=1 if rank.max() > 30 else "D2",
        exponentformat="SI",
        row=1,
        col=2,
    )
    fig.update_xaxes(title_text="logits", zeroline=True, zerolinecolor=INK, row=1, col=3)
    fig.update_xaxes(title_text="head", showgrid=False, row=1, col=4)
    reach = float(np.nanmax(np.abs(heads), initial=1e-6))
    fig.update_layout(
        coloraxis={"colorscale": SIGNED, "cmin": -reach, "cmax": reach, "colorbar": {"title": {"text": "logits"}}},
        barmode="group",
        legend={"x": 0.43, "y": -70 / height},
    )
    return finish(fig, "Logit lens and direct attribution to the final prediction", height)
