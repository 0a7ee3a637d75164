"""The figures of the study `depth`."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr

from interp.icl.studies._drawing import (
    BLUE,
    GREEN,
    ORANGE,
    finished,
    level,
    line,
    named_axes,
    panels,
    place,
    readings,
)
from interp.icl.studies.base import Picture

GAMMA_READ = {10: 0.179, 25: 0.099, 50: 0.056, 100: 0.029}
"""γ of trained two-layer models by the pairs of their prompts, as printed by von Oswald et al. 2023."""
LOSSES = {
    "gd": {1: 0.2062, 2: 0.157, 3: 0.133, 5: 0.1086, 10: 0.0835},
    "gdpp": {2: 0.1107, 3: 0.081, 10: 0.050},
}
"""Losses of tuned GD and GD++ by steps in an earlier independent re-run."""
CAPTIONS = {
    "trajectory": (
        "One layer of linear attention applied twice, while it is trained. Its sensitivities first come close to those "
        "of two steps of gradient descent and then leave them for those of GD++ (right); the loss falls below that of "
        "descent. Lines are means over seeds, bands reach from the least to the greatest."
    ),
    "controls": (
        "Left: loss of tuned gradient descent and GD++ by number of steps; diamonds: an earlier independent run. "
        "Right: the γ of tuned two-step GD++ by pairs in the prompt; diamonds: what the paper reads off trained "
        "weights."
    ),
    "untied": (
        "Layers with weights of their own, while they are trained: loss, beside gradient descent and GD++ with one "
        "pair of step sizes for each layer, and cosine of the sensitivities with both."
    ),
}


def untied_depths(ds: xr.Dataset) -> list[str]:
    """How many layers the models with weights of their own have that a result holds."""
    return [name.rpartition("_")[2] for name in map(str, ds.data_vars) if name.startswith("loss_model_gdpp_untied_")]


def all_of(ds: xr.Dataset) -> list[Picture]:
    """All figures of a result."""
    return [
        Picture("trajectory", CAPTIONS["trajectory"], trajectory(ds)),
        Picture("controls", CAPTIONS["controls"], controls(ds)),
        *(Picture(f"untied_{layers}", CAPTIONS["untied"], untied_layers(ds, layers)) for layers in untied_depths(ds)),
    ]


def trajectory(ds: xr.Dataset) -> go.Figure:
    """Rise and fall of the alignment with descent, as in figure 3 of von Oswald et al. 2023."""
    fig = panels(["loss", "distance of predictions", "cosine of sensitivities"])
    _losses(fig, ds["loss_model_gd"], float(ds["loss_algorithm_gd"].mean()), float(ds["loss_algorithm_gdpp"].mean()))
    line(fig, ds["loss_interpolated"], "interpolated with GD++", GREEN, place(0), dash="dash")
    for kind, name, colour in (("gd", "to gradient descent", ORANGE), ("gdpp", "to GD++", GREEN)):
        line(fig, ds[f"preds_diff_{kind}"], name, colour, place(1))
        line(fig, ds[f"model_cos_{kind}"], name, colour, place(2), legend=False)
    fig.update_yaxes(range=[0.08, 0.45], **place(0))  # interpolated weights of the first steps are far above
    fig.update_yaxes(range=[0.8, 1.005], **place(2))
    for index in range(3):
        named_axes(fig, place(index), "training step")
    return finished(fig, "Two tied layers over training", 420)


def controls(ds: xr.Dataset) -> go.Figure:
    """Tuned GD and GD++."""
    fig = panels(["loss", "γ of GD++ with two steps"], columns=2, spacing=0.12)
    for kind, name, colour in (("gd", "gradient descent", ORANGE), ("gdpp", "GD++, one pair for all steps", GREEN)):
        values = ds[f"{kind}_loss"].dropna("steps")
        line(fig, values, name, colour, place(0, 2))
        readings(fig, list(LOSSES[kind]), list(LOSSES[kind].values()), "earlier run", place(0, 2), legend=kind == "gd")
    line(fig, ds["gamma"], "γ, tuned here", BLUE, place(1, 2))
    readings(fig, list(GAMMA_READ), list(GAMMA_READ.values()), "paper", place(1, 2), legend=False)
    named_axes(fig, place(0, 2), "steps")
    named_axes(fig, place(1, 2), "pairs in the prompt", log_x=True, log_y=True)
    fig.update_xaxes(tickvals=list(GAMMA_READ), **place(1, 2))
    fig.update_yaxes(tickvals=[0.03, 0.05, 0.1, 0.2], **place(1, 2))
    return finished(fig, "Gradient descent and GD++, tuned for the training law", 420)


def untied_layers(ds: xr.Dataset, layers: str) -> go.Figure:
    """Training of layers with weights of their own."""
    end = f"_untied_{layers}"
    fig = panels(["loss", "cosine of sensitivities"], columns=2, spacing=0.12)
    levels = [float(ds[f"loss_algorithm_{kind}{end}"].mean()) for kind in ("gd", "gdpp")]
    _losses(fig, ds[f"loss_model_gd{end}"], *levels)
    for kind, name, colour in (("gd", "with gradient descent", ORANGE), ("gdpp", "with GD++", GREEN)):
        line(fig, ds[f"model_cos_{kind}{end}"], name, colour, place(1, 2))
    for index in range(2):
        named_axes(fig, place(index, 2), "training step")
    return finished(fig, f"{layers} untied layers over training", 420)


def _losses(fig: go.Figure, model: xr.DataArray, gd: float, gdpp: float) -> None:
    """The first panel: the model's loss and those of its two controls."""
    line(fig, model, "trained layers", BLUE, place(0))
    level(fig, gd, "gradient descent, same tasks", place(0), colour=ORANGE)
    level(fig, gdpp, "GD++, same tasks", place(0), colour=GREEN)
