"""The figures of the study `algorithms`."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scipy import stats

from interp.icl.studies._drawing import BLUE, INK, ORANGE, finished, heat, named_axes, panels, place
from interp.icl.studies.base import Picture

CAPTIONS = {
    "pairs": (
        "Distances between algorithms on prompts of six pairs in eight dimensions, without noise. SPD: squared "
        "difference of predictions over d. ILWD: squared distance of implicit weights over d. Cosines of errors, "
        "predictions and weights over growing prefixes: errors share what no algorithm can know, so their cosine is "
        "high for all."
    ),
    "noise": (
        "Left: error of ridge by penalty (down) and noise (across), averaged over prompts with fewer pairs than "
        "dimensions. Right: squared distance of a small transformer trained at that noise to ridge, four pairs. The "
        "least entry of a column is to lie on the diagonal. All over d, in the unit of inputs N(0, I)."
    ),
    "newton": (
        "Left: steps of gradient descent whose predictions, or errors, resemble those of k Newton steps most; a "
        "straight line on this axis is exponential growth. Right: cosine of the predictions of each layer of the "
        "transformer trained without noise (with a linear read-out of its own) with those of Newton's method by its "
        "steps."
    ),
    "elsewhere": (
        "Mean squared error over that of predicting 0, on the training law (first row), on shifts of inputs and "
        "labels, and on other classes of functions; twelve pairs in eight dimensions unless said. The transformer "
        "was trained without noise."
    ),
}


def all_of(ds: xr.Dataset) -> list[Picture]:
    """All figures of a result."""
    draw = {"pairs": pairs, "noise": noise, "newton": newton, "elsewhere": elsewhere}
    return [Picture(name, CAPTIONS[name], figure(ds)) for name, figure in draw.items()]


def doubling(ds: xr.Dataset, measure: str = "predictions") -> tuple[float, float]:
    """Slope of log2 of the best-matching descent steps over Newton steps, and the share of variance a line explains.

    Newton steps that match the most steps of descent that were tried are left out: they may match more. Both are NaN
    where fewer than three are left, through which a line says nothing.
    """
    return _line(*_matched(ds, measure))


def power_law(ds: xr.Dataset, measure: str = "predictions") -> float:
    """The share of variance that a line over log2 of the Newton steps explains, as if growth were a power of them."""
    steps, best = _matched(ds, measure)
    return _line(np.log2(steps), best)[1]


def _matched(ds: xr.Dataset, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Newton steps, and log2 of the descent steps that match each by this measure of `best_matching_steps`."""
    best = ds["newton_best_gd"].sel(measure=measure)
    inside = (best < ds["gd_step"].max()).values
    return ds["newton_step"].values[inside], np.log2(best.values[inside])


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    if len(x) < 3:
        return math.nan, math.nan
    fit = stats.linregress(x, y)
    return float(fit.slope), float(fit.rvalue**2)


def pairs(ds: xr.Dataset) -> go.Figure:
    """Every distance between every two algorithms."""
    names = {
        "spd": "SPD / d", "ilwd": "ILWD / d", "sim_e": "cosine of errors", "sim_p": "cosine of predictions",
        "sim_w": "cosine of weights",
    }  # fmt: skip
    fig = panels(list(names.values()), columns=2, spacing=0.2)
    for index, name in enumerate(names):
        cosines = name.startswith("sim")
        heat(
            fig,
            ds[name].transpose("row", "column"),
            place(index, 2),
            form=".2f",
            low=0,
            high=1 if cosines else None,
            size=9,
        )
    return finished(fig, "Distances between learning algorithms", 1250).update_layout(margin={"b": 90})


def noise(ds: xr.Dataset) -> go.Figure:
    """Penalty against noise."""
    fig = panels(["error of ridge", "distance of trained transformers to ridge"], columns=2, spacing=0.12)
    for index, name in enumerate(("risk", "mspd")):
        texts = np.array([[f"{value:.2g}" for value in row] for row in ds[name].values])
        heat(fig, xr.ufuncs.log10(ds[name]), place(index, 2), texts=texts)
        named_axes(fig, place(index, 2), "noise σ²/τ²", "penalty λ" if index == 0 else "")
    return finished(fig, "Ridge follows the noise", 430).update_layout(margin={"b": 60})


def newton(ds: xr.Dataset) -> go.Figure:
    """Newton's method against descent and against layers."""
    fig = panels(["descent steps that match", "layers of the transformer"], columns=2, spacing=0.14)
    best = ds["newton_best_gd"]
    for measure, colour in (("predictions", BLUE), ("errors", ORANGE)):
        points = go.Scatter(
            x=ds["newton_step"].values, y=best.sel(measure=measure).values, mode="lines+markers", name=f"by {measure}",
            line={"color": colour},
        )  # fmt: skip
        fig.add_trace(points, **place(0, 2))
    slope, _ = doubling(ds)
    growth = "" if math.isnan(slope) else f" (log2 grows by {slope:.2f} a step)"
    first, k = float(best.sel(measure="predictions")[0]), ds["newton_step"].values
    doubled = go.Scatter(
        x=k, y=first * 2.0 ** (k - k[0]), mode="lines", name="doubling", line={"color": INK, "dash": "dot"}
    )
    fig.add_trace(doubled, **place(0, 2))
    named_axes(fig, place(0, 2), f"Newton steps{growth}", "steps of descent", log_y=True)
    layers = ds["layer_similarity"].sel(measure="predictions", drop=True).transpose("layer", "newton_steps")
    heat(
        fig, layers.assign_coords(layer=[f"layer {l}" for l in layers["layer"].values]), place(1, 2), form=".3f", size=9
    )
    named_axes(fig, place(1, 2), "Newton steps")
    return finished(fig, "Newton's method, gradient descent, and layers", 430)


def elsewhere(ds: xr.Dataset) -> go.Figure:
    """Shifts and function classes."""
    fig = panels(["mean squared error over that of predicting 0"], columns=1)
    texts = np.array([[f"{value:.2g}" if value > 1e-6 else "0" for value in row] for row in ds["error"].values])
    heat(fig, xr.ufuncs.log10(ds["error"].clip(1e-6, 1e3)), place(0), texts=texts, low=-4, high=1)
    return finished(fig, "Away from the training law", 580).update_layout(margin={"b": 60})
