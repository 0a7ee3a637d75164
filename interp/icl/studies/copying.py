"""Inputs and labels in tokens of their own: the first layer learns to copy each label beside its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import plotly.graph_objects as go
import xarray as xr

from interp.icl.learners.gd_losses import GDLaw
from interp.icl.learners.optimal import tune_gd
from interp.icl.measures.copying import copying_score
from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.models.copying_model import copying_recipe
from interp.icl.studies._drawing import (
    BLUE,
    GREEN,
    GREY,
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
from interp.icl.studies._regressors import EVALUATION_SEED, half_mse, scalars, trained_regressor
from interp.icl.studies.base import Choice, Picture, Progress, Study, Variant, share
from interp.icl.studies.parts import StudyParts
from interp.icl.studies.verdicts import Verdict, between, near
from interp.icl.tasks.regression import make_regression

D = PAIRS = 10
PAPER, RERUN = "von Oswald et al. 2023, figure 5", "an earlier independent re-run"
EARLIER = {6000: 0.237, 24000: 0.218}
"""Loss of an earlier re-run by training step."""
PLATEAU = 4000


@dataclass(frozen=True)
class Copying(Study):
    """Trains a softmax layer and a linear layer on interleaved tokens and probes what the first one copies.

    Examples:
        >>> study = interp.icl.studies.make("copying", quick=True)
        >>> result = study.run("runs/copying")  # doctest: +SKIP
    """

    name: ClassVar[str] = "copying"
    title: ClassVar[str] = (
        "A first layer learns to copy each label beside its input, and a second does gradient descent"
    )
    paper: ClassVar[str] = (
        "von Oswald et al., Transformers learn in-context by gradient descent, ICML 2023 (arXiv:2212.07677), figure 5"
    )
    description: ClassVar[str] = (
        "Gradient descent in one layer needs input and label in one token. Here they come in tokens of their own, with "
        "position features, and two layers are trained: softmax attention, then linear attention. The norm of the mean "
        "gradient of the first layer's output at each token in every token of the prompt says what it has copied there."
    )
    summary: ClassVar[str] = "separate tokens for inputs and labels: the layer that pairs them"
    variant: Literal["code", "paper"] = "code"

    @property
    def steps(self) -> int:
        return 200 if self.quick else 24_000

    @property
    def batch(self) -> int:
        return 256 if self.quick else 1024

    def measure(self, parts: StudyParts, progress: Progress) -> xr.Dataset:
        used = replace(copying_recipe(D, PAIRS, self.variant), batch=self.batch)
        law: dict[str, Any] = {"N": PAIRS, "d": D, "half_width": used.half_width}
        tasks = make_regression(500 if self.quick else 5_000, **law, seed=EVALUATION_SEED)
        probed = tasks[:200] if self.quick else tasks[:1_000]

        def watch(_: int, model: AttentionRegressor) -> Mapping[str, float]:
            scores = copying_score(model, probed)
            return {"loss_model": half_mse(model, tasks)} | scalars(scores, "own", "next", "next_of_x", "others")

        model, curve = trained_regressor(
            parts, "seed-0", AttentionRegressor(used.cfg, seed=0), law, self.steps,
            seed=0, every=self.steps // 48 or 1, watch=watch, report=share(progress, 0, 1, "training"),
            **used.optimiser,
        )  # fmt: skip
        gd_law = GDLaw(D, PAIRS, x_variance=used.half_width**2 / 3)
        return (
            curve.drop_vars(["loss", "grad_norm", "step"])
            .merge(copying_score(model, tasks)[["sensitivity", "sensitivity_se"]])
            .assign(
                gd_loss=gd_law.best_loss,
                zero_loss=gd_law.zero_loss,
                gd_two_steps_loss=half_mse(tune_gd(tasks, 2), tasks),
                gd_loss_same_tasks=half_mse(tune_gd(tasks), tasks),
            )
            .assign_attrs(
                x_variance=gd_law.x_variance, variant=self.variant, training_steps=self.steps, batch=used.batch,
                evaluation_tasks=len(tasks),
            )
        )  # fmt: skip

    def verdicts(self, ds: xr.Dataset) -> list[Verdict]:
        bounded, close = partial(between, measured=not self.quick), partial(near, measured=not self.quick)
        last, first = ds.isel(measured_step=-1), ds.isel(measured_step=0)
        plateau = ds["loss_model"].where(ds["measured_step"] <= PLATEAU, drop=True)
        ratio = last["loss_model"] / ds["gd_loss_same_tasks"]
        rows = [
            bounded(f"plateau: least loss of the first {PLATEAU:,} steps over that of predicting 0",
                    f"{RERUN}: .417 for 4,000 steps", plateau.min() / ds["zero_loss"], low=0.97),
            bounded("end: loss over that of ONE step of descent, same tasks",
                    f"{PAPER}: one step; {RERUN}: 1.06 after 24,000 steps",
                    ratio, low=0.97, high=1.08),
            bounded("end: loss over that of TWO steps of descent, same tasks", f"{PAPER}: one step, not two",
                    last["loss_model"] / ds["gd_two_steps_loss"], low=1.15),
            bounded("end: what first-layer outputs hold of the next token", f"{PAPER}; {RERUN}: 1.04", last["next"],
                    low=0.9),
            bounded("start: the same", RERUN, first["next"], high=0.05),
            close("end: what they hold of their own token", f"{RERUN}: 3.14, √10 at the start", 3.14, last["own"],
                  within=0.05),
            bounded("end: what they hold of the others, on average", f"{RERUN}: .005", last["others"], high=0.02),
        ]  # fmt: skip
        if self.variant == "code":
            rows += [
                close(f"loss after {step:,} steps", f"{RERUN}, another seed", loss,
                      float(ds["loss_model"].sel(measured_step=step, method="nearest")), within=0.08)
                for step, loss in EARLIER.items()
            ]  # fmt: skip
        return rows

    def figures(self, ds: xr.Dataset) -> list[Picture]:
        return [Picture("training", TRAINING, _training(ds)), Picture("sensitivity", SENSITIVITY, _sensitivity(ds))]

    def choices(self) -> list[Choice]:
        code = self.variant == "code"
        mine: Variant = "released code" if code else "paper"
        other = "paper" if code else "released code"
        return [
            Choice("inputs", "U(-0.5, 0.5)" if code else "U(-1, 1)", mine,
                   f"{other}: U{'(-1, 1)' if code else '(-0.5, 0.5)'}"),
            Choice("position features", "10" if code else "20", mine, f"{other}: {20 if code else 10}"),
            Choice("batch", f"{self.batch}", "ours", "both: 2048"),
            Choice("Adam's betas", "(0.9, 0.98)", "released code", "paper: (0.9, 0.999)"),
            Choice("initial weights", "variance 0.02 / (layers · fan-in)", "released code",
                   "paper: standard deviation 0.002 / layers"),
            Choice("read-out", "minus the last coordinate, a position feature", "released code", "paper: not said"),
            Choice("mean over other tokens", "without the next token", "ours",
                   "released code: with it, divided by the number without it"),
        ]  # fmt: skip


TRAINING = (
    "Left: loss on held-out tasks, with one and two steps of tuned gradient descent on the same tasks; diamonds: an "
    "earlier independent run with another seed. Right: how far the first layer's outputs hold their own token, the "
    "one that follows, and the others. The loss leaves its plateau when the next token is copied."
)
SENSITIVITY = (
    "After training: norm of the mean gradient of the first layer's output at each token (down) in the content of "
    "every token of the prompt (across). x tokens hold the label that follows them."
)


def _training(ds: xr.Dataset) -> go.Figure:
    fig = panels(["loss", "what first-layer outputs hold"], columns=2, spacing=0.12)
    line(fig, ds["loss_model"], "trained model", BLUE, place(0, 2))
    level(fig, float(ds["gd_loss_same_tasks"]), "one step of descent", place(0, 2))
    level(fig, float(ds["gd_two_steps_loss"]), "two steps", place(0, 2), colour=GREY)
    if ds.attrs["variant"] == "code":
        readings(fig, list(EARLIER), list(EARLIER.values()), "earlier run", place(0, 2))
    for name, label, colour in (
        ("own", "own token", BLUE),
        ("next", "next token", ORANGE),
        ("others", "others", GREEN),
    ):
        line(fig, ds[name], label, colour, place(1, 2))
    for index in range(2):
        named_axes(fig, place(index, 2), "training step")
    return finished(fig, "Copying in training", 420)


def _sensitivity(ds: xr.Dataset) -> go.Figure:
    names = ds["token_name"].values
    values = ds["sensitivity"].assign_coords(output=names[: ds.sizes["output"]], token=names)
    fig = panels(["first-layer output at (down), token (across)"], columns=1)
    heat(fig, values, place(0), form=".2f", size=9)
    return finished(fig, "What the first layer has copied", 620).update_layout(margin={"b": 60})
