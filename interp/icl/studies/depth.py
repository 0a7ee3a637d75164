"""Depth: several layers are several steps, and learn to transform their inputs as GD++ does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr

from interp.errors import InterpError
from interp.icl.learners.algorithms import Algorithm, gdpp
from interp.icl.learners.optimal import tune_gd, tune_gdpp
from interp.icl.measures.alignment import align
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.construction import construct_gdpp
from interp.icl.models.extraction import in_gauge, interpolate, lsa_products
from interp.icl.models.training import Recipe, recipe
from interp.icl.studies import _depth_figures as drawn
from interp.icl.studies._regressors import (
    EVALUATION_SEED,
    Report,
    half_mse,
    over_seeds,
    recipe_choices,
    shared_size,
    trained_regressor,
)
from interp.icl.studies.base import Choice, Picture, Progress, Study, share
from interp.icl.studies.parts import StudyParts
from interp.icl.studies.verdicts import Verdict, between, near
from interp.icl.tasks.regression import Tasks, make_regression
from interp.results.described import described

D = PAIRS = 10
PAPER, RERUN = "von Oswald et al. 2023", "an earlier independent re-run"
TIED, UNTIED, CURVATURE = f"{PAPER}, figure 3a", f"{PAPER}, figure 3b", f"{PAPER}, appendix A.10"
GD_LOSS, GDPP_LOSS, GAMMA = drawn.LOSSES["gd"], drawn.LOSSES["gdpp"], drawn.GAMMA_READ
UNTIED_LOSS = 0.042
EXTREMES = {"least": {25: 0.097, 50: 0.666, 100: 2.870}, "largest": {10: 4.6, 25: 7.712, 50: 10.845, 100: 17.196}}
UNTIED_STEPS = 24_000
"""Of training layers with weights of their own: after 4,000 their loss is still that of descent, and falling."""
MEASURES = ("loss_model", "loss_algorithm", "preds_diff", "model_diff", "model_cos")


@dataclass(frozen=True)
class Depth(Study):
    """Tunes GD and GD++ at several depths and trains layers of linear attention, tied and untied.

    Examples:
        >>> study = interp.icl.studies.make("depth", quick=True)
        >>> result = study.run("runs/depth")  # doctest: +SKIP
    """

    name: ClassVar[str] = "depth"
    title: ClassVar[str] = "Two layers of linear attention first learn two steps of gradient descent, then GD++"
    paper: ClassVar[str] = (
        "von Oswald et al., Transformers learn in-context by gradient descent, ICML 2023 (arXiv:2212.07677), figure 3 "
        "and appendix A.10"
    )
    description: ClassVar[str] = (
        "Gradient descent and GD++, which also transforms the inputs at every step, are tuned for the training law "
        "at several depths. One layer of linear attention applied twice is trained from small random weights: its "
        "cosine with two steps of descent rises and then falls, while that with GD++ goes to 1. Layers with weights "
        "of their own are trained too."
    )
    summary: ClassVar[str] = "several layers against several steps of GD and GD++"
    quick_seeds: ClassVar[int | None] = 1
    seeds: int = 2
    variant: Literal["code", "paper"] = "code"

    @property
    def steps(self) -> int:
        return 200 if self.quick else 4000

    @property
    def untied(self) -> tuple[int, ...]:
        """Depths of the models whose layers have weights of their own; one seed each."""
        return () if self.quick else (5,)

    def measure(self, parts: StudyParts, progress: Progress) -> xr.Dataset:
        half = self._recipe(2, tied=True).half_width
        count = 20_000 if self.quick else 50_000  # fewer fit their rarest tasks, in which ten steps diverge
        settings = {"tasks": count, "half_width": half}
        jobs = 2 + self.seeds + len(self.untied)
        progress(0, "tuning GD and GD++")
        ds = parts.measured("controls", settings, lambda: _controls(count, half))
        progress(1 / jobs, "gamma by context length")
        ds = ds.merge(parts.measured("gamma", settings, lambda: _by_length(count, half)))
        tied = [
            self._trained(parts, 2, True, seed, share(progress, 2 + seed, jobs, f"2 tied layers, seed {seed}"))
            for seed in range(self.seeds)
        ]
        ds = ds.merge(over_seeds(tied))
        for place, K in enumerate(self.untied, start=2 + self.seeds):
            curve = self._trained(parts, K, False, 0, share(progress, place, jobs, f"{K} untied layers"))
            ds = ds.merge(curve.rename({name: f"{name}_untied_{K}" for name in [*curve.data_vars, *curve.dims]}))
        return ds.assign_attrs(variant=self.variant, x_variance=half**2 / 3, training_steps=self.steps)

    def _recipe(self, layers: int, *, tied: bool) -> Recipe:
        return recipe(RegressorConfig(d_in=D, n_ctx=PAIRS, n_layers=layers, recurrent=tied), self.variant)

    def _trained(self, parts: StudyParts, layers: int, tied: bool, seed: int, report: Report) -> xr.Dataset:
        """The curve of one model, with its alignment to tuned GD and GD++ of as many steps."""
        used, steps = self._recipe(layers, tied=tied), self.steps if tied else UNTIED_STEPS
        law: dict[str, Any] = {"N": PAIRS, "d": D, "half_width": used.half_width}
        tasks = make_regression(1_000 if self.quick else 5_000, **law, seed=EVALUATION_SEED)
        plus = tune_gdpp(tasks, layers, shared=tied)
        controls: dict[str, Algorithm] = {"gd": tune_gd(tasks, layers), "gdpp": plus}

        def watch(_: int, model: AttentionRegressor) -> Mapping[str, float]:
            found = {f"{name}_{kind}": value for kind, control in controls.items()
                     for name, value in _alignment(model, control, tasks).items()}  # fmt: skip
            return found | (_weights(model, plus, tasks) if tied else {})

        name = f"{layers}-{'tied' if tied else 'untied'}-{seed}"
        _, curve = trained_regressor(
            parts, name, AttentionRegressor(used.cfg, seed), law, steps,
            seed=seed, every=max(50, steps // 80), watch=watch, report=report, **used.optimiser,
        )  # fmt: skip
        return curve.drop_vars(["loss", "grad_norm", "step"])

    def verdicts(self, ds: xr.Dataset) -> list[Verdict]:
        bounded, close = partial(between, measured=not self.quick), partial(near, measured=not self.quick)
        rows = []
        if self.variant == "code":
            rows += [
                near(f"loss of gradient descent, steps: {K}", RERUN, expected, float(ds["gd_loss"].sel(steps=K)),
                     within=0.03)
                for K, expected in GD_LOSS.items()
            ]  # fmt: skip
            rows += [
                near("loss of GD++, 2 steps alike", RERUN, GDPP_LOSS[2], float(ds["gdpp_loss"].sel(steps=2)),
                     within=0.03),
                *(
                    between(f"loss of GD++, {K} steps alike: tuned at least as well", RERUN,
                            float(ds["gdpp_loss"].sel(steps=K)), high=1.03 * GDPP_LOSS[K],
                            expected=f"at most {GDPP_LOSS[K]:.3g} + 3 %")
                    for K in (3, 10)
                ),
                near("loss of GD++, 10 steps alike, of the sizes that the earlier run printed in two digits", RERUN,
                     GDPP_LOSS[10], float(ds["gdpp_loss_at_earlier_sizes"]), within=0.05),
                near("loss of GD++, 5 steps each with its own sizes", RERUN, UNTIED_LOSS, float(ds["untied_loss"]),
                     within=0.03),
            ]  # fmt: skip
            rows += [
                near(f"γ of tuned GD++ for {N} pairs", f"{CURVATURE}, of trained layers", expected,
                     float(ds["gamma"].sel(pairs=N)), within=0.05)
                for N, expected in GAMMA.items()
            ]  # fmt: skip
            rows += [
                near(f"{which} eigenvalue of XᵀX in 10,000 prompts of {N} pairs", CURVATURE, expected,
                     float(ds[f"{which}_eigenvalue"].sel(pairs=N)), within=0.15)
                for which, values in EXTREMES.items() for N, expected in values.items()
            ]  # fmt: skip
        return [*rows, *self._trained_verdicts(ds, bounded, close)]

    def _trained_verdicts(self, ds: xr.Dataset, bounded: Any, close: Any) -> list[Verdict]:
        last, cosine = ds.isel(measured_step=-1), ds["model_cos_gd"]
        fall = cosine.max("measured_step") - last["model_cos_gd"]
        rows = [
            bounded("2 tied layers: greatest cosine with two steps of descent on the way",
                    f"{TIED}: they align at first; {RERUN}: .992", cosine.max("measured_step"), low=0.98),
            bounded("2 tied layers: fall of that cosine from there to the end",
                    f"{TIED}: it falls; {RERUN}: .042", fall, low=0.02),
            bounded("2 tied layers: cosine with GD++ at the end, worst seed", f"{TIED}: ≈ 1; {RERUN}: .997",
                    last["model_cos_gdpp"].min(), low=0.99),
            bounded("2 tied layers: how much closer to GD++ than to descent, as difference of cosines",
                    f"{TIED}: closer; {RERUN}: .047", last["model_cos_gdpp"] - last["model_cos_gd"], low=0.02),
            bounded("2 tied layers: loss over that of tuned GD++, same tasks", f"{TIED}: equal; {RERUN}: 1.01",
                    last["loss_model_gdpp"] / last["loss_algorithm_gdpp"], low=0.97, high=1.04),
            bounded("2 tied layers: loss of weights interpolated with GD++ over that of GD++, same tasks",
                    f"{TIED}: equal; {RERUN}: 1.00", last["loss_interpolated"] / last["loss_algorithm_gdpp"],
                    low=0.98, high=1.02),
            bounded("2 tied layers: distance of the predictions to those of GD++", f"{RERUN}: .035 to .042",
                    last["preds_diff_gdpp"], high=0.05),
        ]  # fmt: skip
        if self.variant == "code":
            rows += [
                bounded("2 tied layers: loss at the end", f"our aim; {RERUN}, on other tasks: .108 to .109",
                        last["loss_model_gd"], high=0.115),
                close("2 tied layers: γ read off the trained weights", CURVATURE, GAMMA[PAIRS], last["gamma_read"],
                      within=0.05),
            ]  # fmt: skip
        for K in drawn.untied_depths(ds):
            end = ds.isel({f"measured_step_untied_{K}": -1})
            to_gdpp, to_gd = (end[f"model_cos_{kind}_untied_{K}"] for kind in ("gdpp", "gd"))
            rows += [
                bounded(f"{K} untied layers: loss over that of {K} tuned GD++ steps", f"{UNTIED}: near 0 for both",
                        end[f"loss_model_gdpp_untied_{K}"] / end[f"loss_algorithm_gdpp_untied_{K}"], high=1.0),
                bounded(f"{K} untied layers: cosine with {K} tuned GD++ steps", f"{UNTIED}: near 1", to_gdpp, low=0.97),
                bounded(f"{K} untied layers: how much closer to GD++ than to descent, as difference of cosines",
                        f"{UNTIED}: closer", to_gdpp - to_gd, low=0.02),
            ]  # fmt: skip
        return rows

    def notes(self, ds: xr.Dataset) -> list[str]:
        said = []
        for K in drawn.untied_depths(ds):
            end = ds.isel({f"measured_step_untied_{K}": -1})
            steps, loss = int(end[f"measured_step_untied_{K}"]), float(end[f"loss_model_gd_untied_{K}"])
            controls = " and ".join(
                f"{float(end[f'loss_algorithm_{kind}_untied_{K}']):.3f} for {name} (cosine with it "
                f"{float(end[f'model_cos_{kind}_untied_{K}']):.3f})"
                for kind, name in (("gd", "descent"), ("gdpp", "GD++"))
            )
            said.append(
                f"After {steps:,} steps {K} untied layers have loss {loss:.3f}, against "
                f"{controls}, {K} steps each; the paper's losses are near 0."
            )
        if self.variant == "code":
            at = ds.sel(steps=10)
            said.append(
                f"Tuned GD++ of 10 steps alike has loss {float(at['gdpp_loss']):.4f} at η/N = "
                f"{float(at['gdpp_eta']):.2f} and γ = {float(at['gdpp_gamma']):.3f}. The earlier run's fit by Adam "
                "stopped at η/N = 1.85, γ = .13 and printed .050; their loss on the same tasks is "
                f"{float(ds['gdpp_loss_at_earlier_sizes']):.4f}."
            )
        return said

    def figures(self, ds: xr.Dataset) -> list[Picture]:
        return drawn.all_of(ds)

    def choices(self) -> list[Choice]:
        return [
            *recipe_choices(self._recipe(2, tied=True)),
            Choice("fit of GD and GD++", "least squares on a fixed set of tasks", "ours",
                   "released code: Adam on new batches"),
        ]  # fmt: skip


def _controls(B: int, half_width: float) -> xr.Dataset:
    """Losses, on four times as many fresh tasks, of GD and GD++ tuned on `B` tasks, and their step sizes."""
    fit = make_regression(B, PAIRS, D, half_width, seed=EVALUATION_SEED + 1, dtype=torch.float64)
    fresh = make_regression(4 * B, PAIRS, D, half_width, seed=EVALUATION_SEED + 2, dtype=torch.float64)
    gds = {K: tune_gd(fit, K) for K in GD_LOSS}
    gdpps = {K: tune_gdpp(fit, K) for K in GDPP_LOSS}
    untied = tune_gdpp(fit, 5, shared=False)
    gd_loss = [half_mse(gds[K], fresh) for K in GD_LOSS]
    gdpp_loss = [half_mse(gdpps[K], fresh) if K in gdpps else np.nan for K in GD_LOSS]
    gdpp_eta = [shared_size(gdpps[K].eta) / PAIRS if K in gdpps else np.nan for K in GD_LOSS]
    gdpp_gamma = [shared_size(gdpps[K].gamma) if K in gdpps else np.nan for K in GD_LOSS]
    earlier, eta, gamma = gdpp(10, 1.85 * PAIRS, 0.13), "tuned step size over the number of pairs", "tuned γ"
    half = "half the mean squared error of"
    return described(
        {
            "gd_loss": ("steps", gd_loss, "y²", f"{half} tuned GD, on fresh tasks"),
            "gd_eta": ("steps", [shared_size(gds[K].eta) / PAIRS for K in GD_LOSS], "1/x²", f"{eta} of GD"),
            "gdpp_loss": ("steps", gdpp_loss, "y²", f"{half} tuned GD++ whose steps are alike, on fresh tasks"),
            "gdpp_eta": ("steps", gdpp_eta, "1/x²", f"{eta} of GD++ whose steps are alike"),
            "gdpp_gamma": ("steps", gdpp_gamma, "1/x²", f"{gamma} of GD++ whose steps are alike"),
            "gdpp_loss_at_earlier_sizes": (
                (),
                half_mse(earlier, fresh),
                "y²",
                f"{half} GD++ of the earlier run's sizes",
            ),
            "untied_loss": ((), half_mse(untied, fresh), "y²", f"{half} tuned GD++ whose steps differ, on fresh tasks"),
            "untied_eta": ("untied_step", np.array(untied.eta) / PAIRS, "1/x²", f"{eta} of GD++ whose steps differ"),
            "untied_gamma": ("untied_step", np.array(untied.gamma), "1/x²", f"{gamma} of GD++ whose steps differ"),
        },
        coords={"steps": list(GD_LOSS), "untied_step": range(1, 6)},
    )


def _by_length(B: int, half_width: float) -> xr.Dataset:
    """γ of tuned two-step GD++ and the extreme eigenvalues of XᵀX, by context length."""
    gammas, least, largest = [], [], []
    for N in GAMMA:
        tasks = make_regression(B, N, D, half_width, seed=EVALUATION_SEED + 3, dtype=torch.float64)
        gammas.append(shared_size(tune_gdpp(tasks, 2).gamma))
        X = tasks.X[:10_000]
        eigenvalues = torch.linalg.eigvalsh(X.mT @ X)
        least.append(float(eigenvalues.min()))
        largest.append(float(eigenvalues.max()))
    return described(
        {
            "gamma": ("pairs", gammas, "1/x²", "tuned γ of GD++ of two steps alike"),
            "least_eigenvalue": ("pairs", least, "x²", "the least eigenvalue of XᵀX in 10,000 prompts"),
            "largest_eigenvalue": ("pairs", largest, "x²", "the largest eigenvalue of XᵀX in 10,000 prompts"),
        },
        coords={"pairs": list(GAMMA)},
    )


def _alignment(model: AttentionRegressor, control: Algorithm, tasks: Tasks) -> dict[str, float]:
    found = align(model, control, tasks, parts="query")
    return {name: float(found[name]) for name in MEASURES}


def _weights(model: AttentionRegressor, control: gdpp, tasks: Tasks) -> dict[str, float]:
    """The γ that the weights hold, and the loss of their mean with GD++; NaN before there is anything to divide by."""
    try:
        products = in_gauge(lsa_products(model), D)
        target = construct_gdpp(AttentionRegressor(model.cfg), shared_size(control.eta), shared_size(control.gamma))
        mixed = interpolate(model, target)
    except InterpError:
        return {"gamma_read": np.nan, "loss_interpolated": np.nan}
    gamma = -float(products.PV[0, :D, :D].diagonal().mean())
    return {"gamma_read": gamma, "loss_interpolated": half_mse(mixed, tasks)}
