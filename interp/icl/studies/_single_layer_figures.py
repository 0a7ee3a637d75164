"""The figures of the study `single-layer`."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr

from interp.icl.studies._drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    finished,
    heat,
    level,
    line,
    named_axes,
    panels,
    place,
    readings,
)
from interp.icl.studies.base import Picture

ROLLED = {1: 0.2213, 5: 0.1194, 10: 0.0892, 20: 0.0663, 50: 0.0449}
"""Loss of descent damped by 0.75 after so many steps, as an earlier independent re-run measured it."""
AWAY = {
    "inputs": ("scale", "inputs scaled by"),
    "teacher": ("scale", "teachers scaled by"),
    "pairs": ("pairs", "pairs in the prompt"),
    "corrupted": ("corrupted", "labels replaced by noise"),
}


def all_of(ds: xr.Dataset) -> list[Picture]:
    """All figures of a result."""
    return [
        Picture("training", CAPTIONS["training"], training(ds)),
        Picture("away", CAPTIONS["away"], away(ds)),
        Picture("rolled_out", CAPTIONS["rolled_out"], rolled_out(ds)),
        Picture("weights", CAPTIONS["weights"], weights(ds)),
    ]


CAPTIONS = {
    "training": (
        "Left: half the mean squared error on the same held-out tasks, of the layer, of one step of gradient "
        "descent, and of the mean of both sets of weights. Middle: how far predictions and their gradients in the "
        "query (the implicit weights) are from those of gradient descent. Right: cosine of these gradients, and the "
        "ratio of their norms. Lines are means over seeds, bands reach from the least to the greatest; the diamond is "
        "the loss that the paper's notebook prints for gradient descent."
    ),
    "away": (
        "The trained layer where it was never trained. Lines: the layer, mean over seeds. Circles: one step of "
        "gradient descent with the step size of training, in closed form."
    ),
    "rolled_out": (
        "The layer applied again and again to the label slots, each change multiplied by a damping factor, beside "
        "gradient descent with the same factor. Diamonds: descent at 0.75 in an earlier independent run of the set-up."
    ),
    "weights": (
        "The products of the trained weights of seed 0, brought to a common scale (the mean of the first ten diagonal "
        "entries of W_KᵀW_Q is 1). Gradient descent needs an identity without its last entry on the left and −η/N in "
        "the last corner in the middle. The last column on the left meets a slot that is always 0. Right: the layer's "
        "exact linear predictor, for which descent is η/N times the identity."
    ),
}


def training(ds: xr.Dataset) -> go.Figure:
    """Loss and alignment over training, as in figure 2 of von Oswald et al. 2023."""
    fig = panels(["loss", "distance to gradient descent", "cosine and norm ratio"])
    line(fig, ds["loss_model"], "trained layer", BLUE, place(0))
    line(fig, ds["loss_interpolated"], "interpolated weights", GREEN, place(0))
    level(fig, float(ds["gd_loss"]), "gradient descent, same tasks", place(0))
    if ds.attrs["variant"] == "code":
        readings(fig, [int(ds["measured_step"][-1])], [0.20468888], "paper's notebook", place(0))
    line(fig, ds["preds_diff"], "predictions", BLUE, place(1))
    line(fig, ds["model_diff"], "sensitivities", ORANGE, place(1))
    line(fig, ds["model_cos"], "cosine of sensitivities", ORANGE, place(2))
    line(fig, ds["norm_ratio"], "ratio of their norms", GREEN, place(2), dash="dash")
    for index in range(3):
        named_axes(fig, place(index), "training step")
    low, high = float(ds["gd_loss"]), float(ds["zero_loss"])
    fig.update_yaxes(range=[low - 0.1 * (high - low), high + 0.25 * (high - low)], row=1, col=1)
    return finished(fig, "Training: loss and alignment with one step of gradient descent", 420)


def away(ds: xr.Dataset) -> go.Figure:
    """Losses off the training law."""
    fig = panels([""] * len(AWAY), columns=4, spacing=0.06)
    for index, (name, (axis, title)) in enumerate(AWAY.items()):
        at = place(index, 4)
        line(fig, ds[f"loss_{name}"], "trained layer", BLUE, at, legend=index == 0)
        circles = go.Scatter(
            x=ds[axis].values, y=ds[f"law_{name}"].values, name="gradient descent, closed form", mode="markers",
            showlegend=index == 0, legendgroup="gd", marker={"symbol": "circle-open", "size": 9, "color": INK},
        )  # fmt: skip
        fig.add_trace(circles, **at)
        named_axes(fig, at, title, "loss" if index == 0 else "", log_y=name in ("inputs", "teacher"))
    return finished(fig, "Away from the training law", 400)


def rolled_out(ds: xr.Dataset) -> go.Figure:
    """The layer iterated."""
    dampings = ds["damping"].values.tolist()
    fig = panels([f"damping {value:g}" for value in dampings])
    for index, damping in enumerate(dampings):
        at = place(index)
        layer, control = (ds[name].sel(damping=damping).where(lambda a: a < 10) for name in ("rollout", "rollout_gd"))
        line(fig, layer, "trained layer", BLUE, at, legend=index == 0)
        line(fig, control, "gradient descent", ORANGE, at, dash="dash", legend=index == 0)
        if damping == 0.75 and ds.attrs["variant"] == "code":
            readings(fig, list(ROLLED), list(ROLLED.values()), "descent, earlier run", at)
        named_axes(fig, at, "applications", "loss" if index == 0 else "", log_y=True)
        fig.update_yaxes(range=[-1.5, 0.3], **at)
    return finished(fig, "The layer rolled out", 400)


def weights(ds: xr.Dataset) -> go.Figure:
    """Products of the weights of one seed, and its effective predictor."""
    fig = panels(["W_KᵀW_Q", "P W_V", "A_eff"], spacing=0.06)
    first = ds.isel(seed=0)
    for index, name in enumerate(("KQ", "PV", "A_eff")):
        bound = float(abs(first[name]).max())
        values = first[name] if name != "A_eff" else first[name].assign_coords(
            input=first["slot"].values[:-1], query_input=first["slot"].values[:-1]
        )  # fmt: skip
        heat(fig, values, place(index), form=".2f", scale="RdBu_r", low=-bound, high=bound, size=8)
    return finished(fig, "Weights of seed 0", 440).update_layout(showlegend=False, margin={"b": 60})
