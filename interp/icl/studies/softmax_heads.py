"""Softmax attention needs two heads for a step of gradient descent, and a small clip to find it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import plotly.graph_objects as go
import torch
import xarray as xr

from interp.icl.learners.algorithms import gd
from interp.icl.learners.gd_losses import GDLaw
from interp.icl.measures.alignment import align
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.extraction import lsa_products
from interp.icl.models.training import recipe
from interp.icl.studies._drawing import COLOURS, finished, heat, level, line, named_axes, panels, place
from interp.icl.studies._regressors import (
    EVALUATION_SEED,
    Report,
    over_seeds,
    recipe_choices,
    scalars,
    trained_regressor,
)
from interp.icl.studies.base import Choice, Picture, Progress, Study, share
from interp.icl.studies.parts import StudyParts
from interp.icl.studies.verdicts import Verdict, between, near
from interp.icl.tasks.regression import Tasks, make_regression
from interp.results.described import described

D = PAIRS = 10
CONVERGED = 0.25
"""A loss below this is far from both the zero predictor's (.417) and one head's (.29)."""
OFF_PLATEAU = 0.35
PAPER, RERUN = "von Oswald et al. 2023, appendix A.9", "an earlier independent re-run"


class Setting(NamedTuple):
    heads: int
    clip: float
    batch: int

    @property
    def label(self) -> str:
        return f"{self.heads} head{'s' if self.heads > 1 else ''}, clip {self.clip:g}, batch {self.batch}"


SETTINGS = (
    Setting(1, 0.001, 2048),
    Setting(2, 0.001, 2048),
    Setting(2, 10.0, 2048),
    Setting(2, 0.001, 512),
    Setting(2, 10.0, 512),
)
ONE, TWO, TWO_LOOSE, SMALL, SMALL_LOOSE = (setting.label for setting in SETTINGS)
LATER = (TWO_LOOSE, SMALL, SMALL_LOOSE)


@dataclass(frozen=True)
class SoftmaxHeads(Study):
    """Trains softmax layers of one and two heads with two clips, and measures how heads cancel.

    Examples:
        >>> study = interp.icl.studies.make("softmax-heads", quick=True)
        >>> result = study.run("runs/softmax-heads")  # doctest: +SKIP
    """

    name: ClassVar[str] = "softmax-heads"
    title: ClassVar[str] = "Two softmax heads do a step of gradient descent by cancelling what each does besides"
    paper: ClassVar[str] = (
        "von Oswald et al., Transformers learn in-context by gradient descent, ICML 2023 (arXiv:2212.07677), appendix "
        "A.9"
    )
    description: ClassVar[str] = (
        "One layer of softmax attention is trained on the tasks of the linear layer. A softmax adds up to one, so a "
        "head adds the mean of its values whatever the query; two heads of opposite sign can cancel that, and what "
        "their keys and queries do off the diagonal. Whether training gets there is tried with two clips of the "
        "gradient's norm, 0.001 and 10, and two batches."
    )
    summary: ClassVar[str] = "one and two softmax heads, and what the clip decides"
    quick_seeds: ClassVar[int | None] = 1
    seeds: int = 5

    @property
    def steps(self) -> int:
        return 300 if self.quick else 5000

    def measure(self, parts: StudyParts, progress: Progress) -> xr.Dataset:
        tasks = make_regression(1_000 if self.quick else 5_000, PAIRS, D, seed=EVALUATION_SEED)
        jobs = [(setting, seed) for setting in SETTINGS for seed in range(self.seeds)]
        found: dict[str, list[xr.Dataset]] = {setting.label: [] for setting in SETTINGS}
        for done, (setting, seed) in enumerate(jobs):
            told = share(progress, done, len(jobs), f"{setting.label}, seed {seed}")
            found[setting.label].append(self._trained(parts, setting, seed, tasks, told))
        law = GDLaw(D, PAIRS)
        ds = xr.concat([over_seeds(each) for each in found.values()], "setting").assign_coords(setting=list(found))
        return ds.assign(gd_step=law.best_eta / PAIRS, zero_loss=law.zero_loss).assign_attrs(
            x_variance=law.x_variance, training_steps=self.steps, evaluation_tasks=len(tasks)
        )

    def _trained(self, parts: StudyParts, setting: Setting, seed: int, tasks: Tasks, report: Report) -> xr.Dataset:
        cfg = RegressorConfig(d_in=D, n_ctx=PAIRS, n_heads=setting.heads, attention="softmax")
        used = recipe(cfg)
        best = gd(1, GDLaw(D, PAIRS).best_eta)

        def watch(_: int, model: AttentionRegressor) -> Mapping[str, float]:
            found = align(model, best, tasks, parts="query")
            return scalars(found, "loss_model", "loss_algorithm", "preds_diff", "model_diff", "model_cos")

        model, curve = trained_regressor(
            parts, f"heads-{setting.heads}-clip-{setting.clip:g}-batch-{setting.batch}-seed-{seed}",
            AttentionRegressor(used.cfg, seed),
            {"N": PAIRS, "d": D, "half_width": used.half_width}, self.steps,
            seed=seed, every=min(200, self.steps // 4), watch=watch, report=report,
            **replace(used, clip=setting.clip, batch=setting.batch).optimiser,
        )  # fmt: skip
        return curve.drop_vars(["loss", "grad_norm", "step"]).merge(_cancellation(model))

    def verdicts(self, ds: xr.Dataset) -> list[Verdict]:
        bounded, close = partial(between, measured=not self.quick), partial(near, measured=not self.quick)
        last = ds.isel(measured_step=-1)
        converged = last["loss_model"] < CONVERGED
        seeds, count = ds.sizes["seed"], _converging(ds)
        one = last.sel(setting=ONE)
        one = one.where(one["loss_model"] < OFF_PLATEAU, drop=True)
        two = last.sel(setting=TWO).where(converged.sel(setting=TWO), drop=True)
        cancelled = two["off_diagonal_sum"] / two["off_diagonal_head"].min("head")
        return [
            bounded(f"{TWO}: seeds of {seeds} that converge (loss < {CONVERGED})", RERUN, count[TWO], low=0.8 * seeds),
            *(
                bounded(f"{loose}: seeds of {seeds} that converge", f"{RERUN}, batch unknown: 1 of 3", count[loose],
                        high=seeds // 2, expected=f"≤ {seeds // 2}: most do not")
                for loose in (TWO_LOOSE, SMALL_LOOSE)
            ),
            close("1 head: loss, seeds that left the plateau", f"{PAPER}: above gradient descent; value: {RERUN}",
                  0.290, one["loss_model"], within=0.05),
            close("1 head: cosine of the sensitivities", RERUN, 0.72, one["model_cos"], within=0.05),
            close("1 head: distance of the predictions", RERUN, 0.31, one["preds_diff"], within=0.1),
            close("2 heads: loss", f"{PAPER}: near gradient descent; value: {RERUN}", 0.2195, two["loss_model"],
                  within=0.03),
            close("2 heads: cosine of the sensitivities", RERUN, 0.96, two["model_cos"], within=0.02),
            close("2 heads: distance of the predictions", RERUN, 0.10, two["preds_diff"], within=0.15),
            bounded("2 heads: largest off-diagonal entry of the sum over that of a head", f"{PAPER}: they cancel",
                    cancelled, high=0.15),
            bounded("2 heads: sum of the heads' output weights over the larger one", f"{PAPER}: opposite signs",
                    two["offset_left"], high=0.1),
            close("2 heads: step in the sum, its mean diagonal over N", f"{RERUN}: .64, above the linear layer's .606",
                  0.64, two["step_of_sum"], within=0.05),
        ]  # fmt: skip

    def notes(self, ds: xr.Dataset) -> list[str]:
        count = _converging(ds)
        counts = "; ".join(f"{label}: {count[label]:g}" for label in (TWO, *LATER))
        return [
            f"Seeds of {ds.sizes['seed']} that converge with two heads: {counts}. "
            "The earlier run does not say its batch."
        ]

    def figures(self, ds: xr.Dataset) -> list[Picture]:
        return [
            Picture("training", TRAINING, _training(ds)),
            Picture("heads", HEADS, _heads(ds)),
        ]

    def choices(self) -> list[Choice]:
        rows = recipe_choices(recipe(RegressorConfig(attention="softmax")))
        return [
            replace(row, used="0.001 and 10, each at a batch of 2048 and of 512", variant="both",
                    instead="") if row.setting.startswith("largest norm") else row
            for row in rows
        ]  # fmt: skip


TRAINING = (
    "Loss on held-out tasks, one line a seed. With two heads the loss stays on a plateau until the heads have found "
    "opposite signs. Dotted: gradient descent."
)
HEADS = (
    "What each head's keys and queries do, weighted by what the head writes to the label slot (η_h W_KᵀW_Q / "
    "√d_head), for the seed of least loss, and the sum over heads. Where the heads have converged, large entries off "
    "the diagonal cancel and the diagonal stays."
)


def _converging(ds: xr.Dataset) -> dict[str, float]:
    """How many seeds of each setting end below the loss that only cancelling heads reach; NaN without a loss."""
    final = ds["loss_model"].isel(measured_step=-1)
    below = (final < CONVERGED).where(final.notnull()).sum("seed", skipna=False)
    return {str(label): float(below.sel(setting=label)) for label in ds["setting"].values}


def _cancellation(model: AttentionRegressor) -> xr.Dataset:
    """Scores of each head weighted by its output, and what is left of them in the sum; padded to two heads."""
    products = lsa_products(model)
    eta = products.PV[:, D, D]
    weighted = torch.zeros(2, D, D)
    weighted[: len(eta)] = eta[:, None, None] * products.KQ[:, :D, :D]
    total = weighted.sum(0)
    slots = [f"x{i + 1}" for i in range(D)]
    off_heads, off_sum = [_off_diagonal(one) for one in weighted], _off_diagonal(total)
    step = -float(total.diagonal().mean()) / PAIRS
    left = float(eta.sum().abs() / eta.abs().max())
    return described(
        {
            "weighted_scores": (
                ("head", "input", "query_input"),
                weighted,
                "1/x²",
                "scores of a head times its output",
            ),
            "off_diagonal_head": ("head", off_heads, "1/x²", "largest |weighted score| off the diagonal"),
            "off_diagonal_sum": ((), off_sum, "1/x²", "the same of the sum of the heads"),
            "offset_left": ((), left, "1", "|sum of the heads' outputs| over the largest of them"),
            "step_of_sum": ((), step, "1/x²", "step size that the sum's diagonal stands for"),
        },
        coords={"head": [0, 1], "input": slots, "query_input": slots},
    )


def _off_diagonal(matrix: torch.Tensor) -> float:
    return float((matrix - torch.diag(matrix.diagonal())).abs().max())


def _training(ds: xr.Dataset) -> go.Figure:
    fig = panels(ds["setting"].values.tolist())
    for index, setting in enumerate(ds["setting"].values):
        for seed in ds["seed"].values:
            values = ds["loss_model"].sel(setting=setting, seed=seed, drop=True)
            line(fig, values, f"seed {seed}", COLOURS[int(seed) % len(COLOURS)], place(index), legend=index == 0)
        level(fig, float(ds["loss_algorithm"].mean()), "gradient descent", place(index), legend=index == 0)
        named_axes(fig, place(index), "training step", "loss" if index == 0 else "")
        fig.update_yaxes(range=[0.18, 0.46], **place(index))
    return finished(fig, "Softmax attention in training", 680)


def _heads(ds: xr.Dataset) -> go.Figure:
    two = ds.sel(setting=TWO)
    seed = int(two["loss_model"].isel(measured_step=-1).argmin("seed"))
    scores = two["weighted_scores"].isel(seed=seed)
    fig = panels(["head 0", "head 1", "sum"], spacing=0.06)
    bound = float(abs(scores).max())
    for index, values in enumerate((scores.isel(head=0), scores.isel(head=1), scores.sum("head"))):
        heat(fig, values, place(index), form=".1f", scale="RdBu_r", low=-bound, high=bound, size=9)
    return finished(fig, f"Weighted scores of both heads, seed {seed}", 440).update_layout(margin={"b": 60})
