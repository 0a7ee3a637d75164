"""Which learning algorithm is it? Distances between algorithms, ridge against noise, Newton against descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from interp.icl.learners.algorithms import Algorithm, bayes_ridge, gd, knn, newton, ols, ridge
from interp.icl.learners.optimal import lsa_optimal, tune_gdpp
from interp.icl.measures._functions import fresh_queries, weights_at
from interp.icl.measures.alignment import Model, align
from interp.icl.measures.similarity import best_matching_steps
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.training import recipe
from interp.icl.studies import _algorithms_figures as drawn
from interp.icl.studies._regressors import EVALUATION_SEED, Report, half_mse, trained_regressor
from interp.icl.studies.base import Choice, Picture, Progress, Study, share
from interp.icl.studies.parts import StudyParts
from interp.icl.studies.verdicts import Verdict, between, near
from interp.icl.tasks.function_classes import DecisionTree, Quadratic, ReLUNetwork, SparseLinear
from interp.icl.tasks.regression import Tasks, make_regression
from interp.icl.tasks.shifts import CopiedQuery, HalfSubspace, OrthogonalQuery, Quadrants, SkewedCovariance
from interp.results.described import described

D = 8
X_VARIANCE = 1 / 12
"""Inputs are N(0, I/12), so that three layers of linear attention stay stable; with a twelfth of the noise as well this
is the law N(0, I) of the papers, all labels and errors in a smaller unit."""
NOISES = {"0": 0.0, "1/16": 1 / 16, "1/9": 1 / 9, "1/4": 1 / 4, "4/9": 4 / 9}
"""σ²/τ², noise of the labels over the teacher's variance, in the unit of inputs N(0, I)."""
BY_NOISE = ("penalty", "noise")
NOISE_COORDS = {dim: list(NOISES) for dim in BY_NOISE}
FEW, MANY = 4, 12
"""Pairs of the prompts that models are compared with ridge on, and of those that shifts are measured on."""
LAYERS = 3
PENALTIES = np.logspace(-3, 1, 81)
NEWTON_STEPS = tuple(range(1, 9))
GD_STEPS = tuple(sorted({*range(1, 8), *(round(2 ** (k / 4)) for k in range(12, 49))}))
GD_ETA = 0.01 / X_VARIANCE
AKYUREK, GARG, FU = "Akyürek et al. 2023", "Garg et al. 2022", "Fu et al. 2024"


@dataclass(frozen=True)
class Algorithms(Study):
    """Compares learning algorithms with each other, and small trained transformers with them.

    Examples:
        >>> study = interp.icl.studies.make("algorithms", quick=True)
        >>> result = study.run("runs/algorithms")  # doctest: +SKIP
    """

    name: ClassVar[str] = "algorithms"
    title: ClassVar[str] = (
        "Which learning algorithm is it? Ridge follows the noise, Newton doubles, shifts tell them apart"
    )
    paper: ClassVar[str] = (
        "Akyürek et al. 2023 (arXiv:2211.15661), Garg et al. 2022 (arXiv:2208.01066), Fu et al. 2024 (arXiv:2310.17086)"
    )
    description: ClassVar[str] = (
        "Gradient descent, Newton's method, least squares, ridge and nearest neighbours are compared with each other "
        "on the same prompts by their predictions, implicit weights and errors. Small transformers (three tied "
        "layers of linear attention) are trained at five levels of label noise and compared with ridge at five "
        "penalties. Newton steps are matched with steps of gradient descent; and everything is tested on shifts of "
        "the inputs and on other classes of functions."
    )
    summary: ClassVar[str] = "distances between algorithms, ridge against noise, Newton against descent, shifts"

    @property
    def steps(self) -> int:
        return 60 if self.quick else 3000

    @property
    def tasks(self) -> int:
        return 100 if self.quick else 500

    def measure(self, parts: StudyParts, progress: Progress) -> xr.Dataset:
        jobs = len(NOISES) + 5
        settings = {"quick": self.quick}
        progress(0, "pairs of algorithms")
        found = [parts.measured("pairs", settings, lambda: _pairs(self.tasks))]
        progress(1 / jobs, "Newton and descent")
        found.append(parts.measured("newton", settings, self._newton))
        progress(2 / jobs, "noise and penalty")
        found.append(parts.measured("noise", settings, lambda: _risks(40 * self.tasks)))
        models = {
            noise: self._trained(
                parts, f"noise-{place}", noise, FEW, share(progress, 3 + place, jobs, f"noise {noise}")
            )
            for place, noise in enumerate(NOISES)
        }
        general = self._trained(
            parts, "any-length", "0", None, share(progress, jobs - 2, jobs, "prompts of any length")
        )
        progress(1 - 1 / jobs, "trained models")
        found.append(parts.measured("trained", settings, lambda: _against_ridge(models, 4 * self.tasks)))
        found.append(parts.measured("layers", settings, lambda: self._layers(general)))
        found.append(parts.measured("shifts", settings, lambda: _elsewhere(general, 20 * self.tasks)))
        return xr.merge(found, combine_attrs="drop").assign_attrs(
            x_variance=X_VARIANCE, training_steps=self.steps, tasks=self.tasks
        )

    def _trained(
        self, parts: StudyParts, name: str, noise: str, pairs: int | None, report: Report
    ) -> AttentionRegressor:
        """Three tied layers trained at this noise on prompts of so many pairs, or of any number from 1 to `MANY`."""
        used = recipe(RegressorConfig(d_in=D, n_ctx=pairs or MANY, n_layers=LAYERS, recurrent=True))
        held_out = draw(20 * self.tasks, pairs or D, noise)

        def watch(_: int, model: AttentionRegressor) -> Mapping[str, float]:
            return {"loss_model": half_mse(model, held_out)}

        model, _ = trained_regressor(
            parts, name, AttentionRegressor(used.cfg, seed=0), {"noise": noise, "pairs": pairs or f"1 to {MANY}"},
            self.steps, sample=partial(_sample, noise=noise, pairs=pairs), seed=0, every=self.steps // 20, watch=watch,
            report=report, **{**used.optimiser, "batch": 1024},
        )  # fmt: skip
        return model

    def _newton(self) -> xr.Dataset:
        """Steps of descent that resemble each Newton step most."""
        steps = NEWTON_STEPS[:3] if self.quick else NEWTON_STEPS
        tasks = draw(self.tasks // 5, 2 * D, "0", dtype=torch.float64)
        family = {k: newton(k) for k in steps}
        found = best_matching_steps(family, _descent, tasks, [s for s in GD_STEPS if s <= (64 if self.quick else 4096)])
        names = {
            "layer": "newton_step",
            "step": "gd_step",
            "similarity": "newton_similarity",
            "best_step": "newton_best_gd",
        }
        return found[["similarity", "best_step"]].rename(names)

    def _layers(self, model: AttentionRegressor) -> xr.Dataset:
        """Newton steps that resemble each layer of the model trained without noise."""
        tasks = draw(2 * self.tasks, MANY, "0", seed=EVALUATION_SEED + 3)
        found = best_matching_steps(model, newton, tasks, NEWTON_STEPS)
        names = {"step": "newton_steps", "similarity": "layer_similarity", "best_step": "layer_best_newton"}
        return found[["similarity", "best_step"]].rename(names)

    def verdicts(self, ds: xr.Dataset) -> list[Verdict]:
        bounded, close = partial(between, measured=not self.quick), partial(near, measured=not self.quick)
        return [
            *self._noise_verdicts(ds, bounded),
            *self._newton_verdicts(ds, bounded),
            *_shift_verdicts(ds, bounded, close),
        ]

    def _noise_verdicts(self, ds: xr.Dataset, bounded: Any) -> list[Verdict]:
        count = len(NOISES)
        risk, mspd = (_least_on_diagonal(ds[name]) for name in ("risk", "mspd"))
        noiseless = ds["mspd"].sel(noise="0")
        rises = int((ds["closest_penalty"].diff("noise") > 0).sum())
        return [
            bounded(f"ridge: of {count} noises, those whose matching penalty has the least error", "Bayes", risk,
                    low=count),
            bounded(f"trained transformers: of {count} noises, those closest to ridge with the matching penalty",
                    f"{AKYUREK}, figure 2: all", mspd, low=count),
            bounded(f"trained transformers: of {count - 1} steps of noise, those with which the closest penalty rises",
                    f"{AKYUREK}, figure 2: all", rises, low=count - 1),
            bounded("trained without noise: distance to ridge 4/9 over that to least squares",
                    f"{AKYUREK}, figure 2: 386", float(noiseless.sel(penalty="4/9") / noiseless.sel(penalty="0")),
                    low=2),
        ]  # fmt: skip

    def _newton_verdicts(self, ds: xr.Dataset, bounded: Any) -> list[Verdict]:
        rows = []
        for measure, whose in (("errors", FU), ("predictions", "ours")):
            slope, r2 = drawn.doubling(ds, measure)
            matched = f"steps of descent that match Newton step k by {measure}"
            rows += [
                bounded(f"{matched}: growth of log2 per Newton step", f"(I − M S) is squared: 1; measure: {whose}",
                        slope, low=0.7, high=1.3),
                bounded(f"{matched}: share of variance of log2 that a line in k explains",
                        f"{FU}: exponential; measure: {whose}", r2, low=0.95),
                bounded(f"{matched}: that share less that of a line in log2 k, a power of k",
                        f"{FU}: exponential, so above 0; measure: {whose}", r2 - drawn.power_law(ds, measure), low=0),
            ]  # fmt: skip
        layers = ds["layer_best_newton"].sel(measure="predictions")
        return [
            *rows,
            bounded("trained layers: Newton steps that match the last less the first",
                    f"{FU}: they rise with depth", float(layers[-1] - layers[0]), low=1),
        ]  # fmt: skip

    def notes(self, ds: xr.Dataset) -> list[str]:
        loss = [_gd_error(FEW, eta) / _gd_error(FEW, None) - 1 for eta in (0.02, 0.04)]
        steps = (
            f"In closed form one step of .02 or .04, the steps of {AKYUREK}, has {loss[0]:.0%} or {loss[1]:.0%} more "
            f"error on {FEW} pairs of N(0, I) than the best step."
        )
        if self.quick:
            return [steps]
        model, best = ds["closest_penalty"].values, ds["closest_penalty_gdpp"].values
        return [
            steps,
            f"Few layers are a penalty of their own: the ridge closest to the trained models has λ = {model[0]:.2f} "
            f"without noise and {model[-1]:.2f} at the largest, and even {LAYERS} tuned steps of GD++, with nothing "
            f"to train, have {best[0]:.2f} and {best[-1]:.2f}. The paper's model has 16 layers and a width of 512.",
        ]

    def figures(self, ds: xr.Dataset) -> list[Picture]:
        return drawn.all_of(ds)

    def choices(self) -> list[Choice]:
        return [
            Choice("trained model", "three tied layers of linear attention, prompts of 4 pairs, loss on the query",
                   "ours", "Akyürek et al.: 16 layers, width 512, 500,000 steps, loss on every pair"),
            Choice("Newton's start", "M₀ = Sᵀ / ‖S Sᵀ‖_F", "released code", "paper: the factor is left open"),
            Choice("step of the descent that Newton is matched with", "0.01 on the sum", "released code"),
            Choice("read-out of a layer", "least squares", "ours", "Fu et al.: trained by SGD"),
        ]  # fmt: skip


def draw(B: int, pairs: int, noise: str, seed: int | torch.Generator = EVALUATION_SEED, **law: Any) -> Tasks:
    """Linear tasks with inputs N(0, I/12) and the noise of a column of `NOISES`."""
    return make_regression(B, pairs, D, cov=X_VARIANCE, noise=(NOISES[noise] * X_VARIANCE) ** 0.5, seed=seed, **law)


def penalised(penalty: str) -> Algorithm:
    """Ridge with the penalty that suits a noise of `NOISES`."""
    return ridge(NOISES[penalty] * X_VARIANCE) if NOISES[penalty] else ols()


def compared(pairs: int) -> dict[str, Algorithm]:
    """The algorithms whose distances are measured, on prompts of so many pairs."""
    best = float(lsa_optimal(pairs, X_VARIANCE, d=D).matrix[0, 0])
    return {
        "GD(.02)": gd(1, 0.02 / X_VARIANCE, step="sum"),
        "GD(.04)": gd(1, 0.04 / X_VARIANCE, step="sum"),
        "GD(best)": gd(1, best, step="sum"),
        "10 GD(best)": gd(10, best, step="sum"),
        "3 Newton": newton(3),
        "8 Newton": newton(8),
        "ridge 1/4": penalised("1/4"),
        "OLS": ols(),
        "3-NN": knn(3),
        "3-NN, 1/r²": knn(3, "distance"),
    }


def _sample(B: int, /, *, seed: torch.Generator, noise: str, pairs: int | None) -> Tasks:
    """A batch of prompts of `pairs` pairs, or of one random length."""
    length = pairs or int(torch.randint(1, MANY + 1, (1,), generator=seed))
    tasks = draw(B, length, noise, seed)
    return replace(tasks, about={**tasks.about, "N": pairs or f"1 to {MANY}"})


def _pairs(B: int) -> xr.Dataset:
    """All distances between all algorithms, on prompts of six pairs without noise."""
    tasks = draw(B, 6, "0", dtype=torch.float64)
    algorithms = compared(6)
    rows = [align(one, algorithms, tasks, parts=("function", "prefixes")) for one in algorithms.values()]
    names = ["spd", "ilwd", "sim_e", "sim_p", "sim_w", "fit_r2"]
    found = xr.concat([row[names] for row in rows], "row", combine_attrs="drop").assign_coords(row=list(algorithms))
    unit = 1 / (X_VARIANCE * D)  # back to inputs N(0, I), over d
    return found.assign(spd=found["spd"] * unit, ilwd=found["ilwd"] / D).rename(algorithm="column")


def _risks(B: int) -> xr.Dataset:
    """Error of ridge over d by penalty and noise, mean over under-determined lengths, in the unit of inputs N(0, I)."""
    risk = [
        [
            np.mean([2 * half_mse(penalised(p), draw(B, n, noise, dtype=torch.float64)) for n in range(1, D)])
            for noise in NOISES
        ]
        for p in NOISES
    ]
    said = "error of ridge over d, mean over lengths below d, in the unit of inputs N(0, I)"
    return described({"risk": (BY_NOISE, np.array(risk) / (X_VARIANCE * D), "y²/x²", said)}, NOISE_COORDS)


def _against_ridge(models: Mapping[str, Model], B: int) -> xr.Dataset:
    """Mean squared distance of trained models to ridge, and the closest penalty of a fine grid; of GD++ as well."""
    rows = {penalty: penalised(penalty) for penalty in NOISES}
    columns, closest, closest_gdpp = [], [], []
    for noise, model in models.items():
        tasks = draw(B, FEW, noise)
        columns.append(align(model, rows, tasks, parts="function")["spd"].values / (X_VARIANCE * D))
        closest.append(_closest_penalty(model, tasks))
        closest_gdpp.append(_closest_penalty(tune_gdpp(draw(B, FEW, noise, seed=1), LAYERS), tasks))
    penalty = "penalty of ridge, over the variance of x, that predicts most like"
    return described(
        {
            "mspd": (
                BY_NOISE,
                np.array(columns).T,
                "y²/x²",
                "mean squared distance of a trained model to ridge, over d",
            ),
            "closest_penalty": ("noise", closest, "1", f"{penalty} the trained model"),
            "closest_penalty_gdpp": ("noise", closest_gdpp, "1", f"{penalty} tuned GD++"),
        },
        NOISE_COORDS,
    )


@torch.no_grad()
def _closest_penalty(model: Model, tasks: Tasks) -> float:
    """The penalty of ridge whose predictions at fresh queries are closest to the model's."""
    queries = fresh_queries(tasks, None)
    said, _, _ = weights_at(model, tasks.X, tasks.y, queries)
    ridges = [ridge(penalty * X_VARIANCE).weights(tasks.X, tasks.y) for penalty in PENALTIES]
    distances = [float((said - queries @ w[..., None]).square().mean()) for w in ridges]
    return float(PENALTIES[np.argmin(distances)])


def _least_on_diagonal(table: xr.DataArray) -> int:
    """Columns of `table(penalty, noise)` whose least entry has the penalty of that noise."""
    return int((table.fillna(np.inf).argmin("penalty").values == np.arange(len(NOISES))).sum())


def _gd_error(pairs: int, eta: float | None) -> float:
    """Population error of one "sum" step of size `eta` (None: the best) for inputs N(0, I)."""
    best = lsa_optimal(pairs, d=D)
    eta = float(best.matrix[0, 0]) if eta is None else eta
    return D * (1 - 2 * eta * pairs + eta**2 * pairs * (pairs + D + 1))


def _descent(steps: int) -> Algorithm:
    return gd(steps, GD_ETA, step="sum")


def _elsewhere(model: Model, B: int) -> xr.Dataset:
    """Error over the label's variance on shifts and function classes, for algorithms and a trained model."""
    pairs = MANY
    best = float(lsa_optimal(pairs, X_VARIANCE, d=D).matrix[0, 0])
    subjects: dict[str, Model] = {
        "trained": model, "OLS": ols(), "Bayes, noise 1/4": bayes_ridge(X_VARIANCE / 4), "GD(best)": gd(1, best,
                step="sum"),
        "3-NN": knn(3),
    }  # fmt: skip
    laws = {"training law": draw(B, pairs, "0")}
    laws |= {f"x × {scale:g}": _scaled(laws["training law"], scale, scale) for scale in (0.5, 2.0)}
    laws |= {"y × 2": _scaled(laws["training law"], 1.0, 2.0), "noise 1/4": draw(B, pairs, "1/4")}
    shifts = {
        "skewed covariance": SkewedCovariance(), "half the dimensions": HalfSubspace(), "one quadrant": Quadrants(),
        "opposite quadrant": Quadrants("opposite"), "query copied": CopiedQuery(),
    }  # fmt: skip
    laws |= {name: draw(B, pairs, "0", shift=shift) for name, shift in shifts.items()}
    laws["query orthogonal (4 pairs)"] = draw(B, 4, "0", shift=OrthogonalQuery())
    classes = {
        "3-sparse": SparseLinear(3),
        "quadratic": Quadratic(),
        "ReLU network": ReLUNetwork(100),
        "tree": DecisionTree(4),
    }
    laws |= {name: draw(B, pairs, "0", teacher=teacher) for name, teacher in classes.items()}
    errors = [
        [2 * half_mse(subject, tasks) / float(tasks.yq.double().square().mean()) for subject in subjects.values()]
        for tasks in laws.values()
    ]
    return described(
        {"error": (("law", "subject"), errors, "1", "mean squared error over that of predicting 0")},
        coords={"law": list(laws), "subject": list(subjects)},
    )


def _scaled(tasks: Tasks, inputs: float, labels: float) -> Tasks:
    return Tasks(tasks.X * inputs, tasks.y * labels, tasks.xq * inputs, tasks.yq * labels, None, tasks.about)


def _shift_verdicts(ds: xr.Dataset, bounded: Any, close: Any) -> list[Verdict]:
    error, trained = ds["error"].sel(subject="OLS"), ds["error"].sel(subject="trained")
    spanned = [law for law in ("training law", *SPANNED) if law in ds["law"].values]
    doubled = gd_error_at_twice_the_inputs()
    return [
        between("least squares: greatest relative error on shifts whose context spans the query", f"{GARG}: none",
                error.sel(law=spanned).max(), high=1e-4),
        between("least squares: relative error at a query orthogonal to its context", f"{GARG}: it predicts 0",
                float(error.sel(law="query orthogonal (4 pairs)")), low=1 - 1e-4, high=1 + 1e-4),
        close("one gradient step, inputs doubled: relative error", "closed form", doubled,
              float(ds["error"].sel(subject="GD(best)", law="x × 2")), within=0.05),
        bounded("trained model: relative error at doubled inputs over that on the training law",
                f"{GARG}: scale is a weakness", float(trained.sel(law="x × 2") / trained.sel(law="training law")),
                low=10),
        bounded("trained model: relative error at doubled labels over that on the training law",
                "linear in y", float(trained.sel(law="y × 2") / trained.sel(law="training law")), low=0.8, high=1.25),
    ]  # fmt: skip


SPANNED = ("x × 0.5", "x × 2", "y × 2", "skewed covariance", "half the dimensions", "one quadrant", "opposite quadrant",
           "query copied")  # fmt: skip


def gd_error_at_twice_the_inputs() -> float:
    """Relative error of the best training step when inputs and labels double, in closed form."""
    u = 4 * float(lsa_optimal(MANY, d=D).matrix[0, 0])
    return 1 - 2 * u * MANY + u**2 * MANY * (MANY + D + 1)
