"""The best layer of linear attention in closed form, found again by training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import plotly.graph_objects as go
import torch
import xarray as xr
from torch import Tensor

from interp.icl.learners.algorithms import bayes_ridge
from interp.icl.learners.optimal import lsa_optimal, relu_network_step
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.extraction import effective_predictor
from interp.icl.studies._drawing import (
    BLUE,
    COLOURS,
    ORANGE,
    finished,
    heat,
    line,
    named_axes,
    panels,
    place,
    readings,
)
from interp.icl.studies._regressors import EVALUATION_SEED, Report, half_mse, trained_regressor
from interp.icl.studies.base import Choice, Picture, Progress, Study, share
from interp.icl.studies.parts import StudyParts
from interp.icl.studies.verdicts import Verdict, between, near
from interp.icl.tasks.function_classes import ReLUNetwork
from interp.icl.tasks.regression import Tasks, make_regression
from interp.results.described import described

PAIRS, D, NOISE_VAR = 20, 5, 0.5
PRIORS = {"identity": "w ~ N(0, I)", "inverse": "w ~ N(0, Σ⁻¹)", "generic": "w ~ N(0, Ω)"}
"""Teachers of the three theorems; Σ has eigenvalues from 0.5 to 2 and Ω others in another basis."""
CONTEXTS = (5, 10, 20, 40, 80)
AHN, MAHANKALI = "Ahn et al. 2023", "Mahankali et al. 2023"


@dataclass(frozen=True)
class Optimal(Study):
    """A* for three priors of the teacher: the formula, least squares on drawn tasks, and a layer trained by Adam.

    Examples:
        >>> study = interp.icl.studies.make("optimal", quick=True)
        >>> result = study.run("runs/optimal")  # doctest: +SKIP
    """

    name: ClassVar[str] = "optimal"
    title: ClassVar[str] = "Trained linear attention finds the preconditioner that theory gives"
    paper: ClassVar[str] = (
        "Ahn et al. 2023 (arXiv:2306.00297), Mahankali, Hashimoto and Ma 2023 (arXiv:2307.03576), "
        "Zhang, Frei and Bartlett 2023 (arXiv:2306.09927)"
    )
    description: ClassVar[str] = (
        "One layer of linear attention predicts (Σᵢ yᵢ xᵢ)ᵀ A x_q. For Gaussian inputs with covariance Σ, teachers "
        "with covariance Ω and label noise σ² the best A is A* = [(n + 1) Σ + (tr ΩΣ + σ²) Ω⁻¹]⁻¹. The study "
        "compares this formula with least squares on drawn tasks and with what Adam finds from small random weights, "
        "and the error that the layer cannot avoid with that of the Bayes predictor."
    )
    summary: ClassVar[str] = "the best linear attention layer in closed form, and by training"

    @property
    def starts(self) -> tuple[int, int]:
        """How many seeds are tried, and for how many steps; the best of them is trained on."""
        return (3, 300) if self.quick else (12, 600)

    @property
    def stages(self) -> tuple[tuple[int, float], ...]:
        """Steps and learning rate of what follows, one after the other."""
        return ((100, 1e-3), (50, 1e-4)) if self.quick else ((2000, 1e-3), (1500, 1e-4))

    @property
    def tasks(self) -> int:
        """Tasks in each Monte Carlo estimate."""
        return 40_000 if self.quick else 400_000

    def measure(self, parts: StudyParts, progress: Progress) -> xr.Dataset:
        cases = []
        for number, prior in enumerate(PRIORS):
            cases.append(self._case(parts, prior, share(progress, number, len(PRIORS) + 1, f"{prior} prior")))
        progress(0.75, "Bayes and step sizes")
        ds = xr.concat(cases, "prior").assign_coords(prior=list(PRIORS))
        ds = ds.merge(parts.measured("contexts", {"tasks": self.tasks // 10}, lambda: _by_length(self.tasks // 10)))
        return ds.merge(parts.measured("steps", {"tasks": self.tasks}, lambda: _steps(self.tasks))).assign_attrs(
            monte_carlo_tasks=self.tasks, training_stages=list(self.stages)
        )

    def _case(self, parts: StudyParts, prior: str, report: Report) -> xr.Dataset:
        """One law of teachers: formula, least squares, training."""
        best = optimum(prior)
        fresh = draw(self.tasks, prior=prior, seed=EVALUATION_SEED)
        fitted = _least_squares(fresh)

        def watch(_: int, model: AttentionRegressor) -> Mapping[str, float]:
            learned = torch.as_tensor(effective_predictor(model)["A_eff"].values)
            return {"distance": _distance(learned, best.matrix), "mse": 2 * half_mse(model, fresh[:10_000])}

        train = partial(
            trained_regressor, parts, law={"prior": prior, "n": PAIRS, "d": D, "noise_var": NOISE_VAR},
            sample=partial(draw, prior=prior), watch=watch, betas=(0.9, 0.98), clip=1.0,
        )  # fmt: skip
        seeds, steps = self.starts
        tried = []
        for seed in range(seeds):
            report(0.5 * seed / seeds)
            model = AttentionRegressor(RegressorConfig(d_in=D, n_ctx=PAIRS, readout_sign=1), seed)
            tried.append(
                train(f"{prior}-start-{seed}", model, steps=steps, seed=seed, every=steps // 5, report=_unheard,
                      lr=5e-3, batch=512)
            )  # fmt: skip
        reached = xr.concat([curve["mse"].isel(measured_step=-1, drop=True) for _, curve in tried], "start")
        model, first = tried[int(reached.values.argmin())]
        curves, done = [first[["distance", "mse"]]], steps
        for stage, (steps, lr) in enumerate(self.stages):
            _, curve = train(
                f"{prior}-stage-{stage}", model, steps=steps, seed=seeds + stage, every=max(steps // 25, 1), lr=lr,
                batch=2048, report=share(lambda part, _: report(0.5 + part / 2), stage, len(self.stages), ""),
            )  # fmt: skip
            measured = curve[["distance", "mse"]].isel(measured_step=slice(1, None))
            curves.append(measured.assign_coords(measured_step=measured["measured_step"] + done))
            done += steps
        learned = effective_predictor(model, tasks=fresh[:50_000])
        matrices = {"A_formula": best.matrix, "A_least_squares": fitted, "A_trained": learned["A_eff"].values}
        return xr.concat(curves, "measured_step").assign(
            {name: (("row", "column"), torch.as_tensor(matrix).numpy()) for name, matrix in matrices.items()}
            | {
                "mse_of_starts": reached,
                "distance_trained": _distance(torch.as_tensor(learned["A_eff"].values), best.matrix),
                "distance_least_squares": _distance(fitted, best.matrix),
                "mse_formula": best.mse,
                "mse_of_formula_on_tasks": 2 * half_mse(best, fresh),
                "mse_trained": 2 * half_mse(model, fresh),
                "mse_bayes": 2 * half_mse(bayes_ridge(NOISE_VAR, covariances(prior)[1]), fresh[:50_000]),
                "leaks": float((learned["x_leak"] ** 2 + learned["y_leak"] ** 2) ** 0.5 / learned["main"]),
            }
        )

    def verdicts(self, ds: xr.Dataset) -> list[Verdict]:
        bounded = partial(between, measured=not self.quick)
        rows = []
        for prior, law in PRIORS.items():
            at = ds.sel(prior=prior)
            rows += [
                bounded(f"{law}: trained A_eff, distance to A* over ‖A*‖", SOURCES[prior], at["distance_trained"],
                        high=0.02),
                bounded(f"{law}: least squares on {self.tasks:,} tasks, the same distance", SOURCES[prior],
                        at["distance_least_squares"], high=0.01),
                bounded(f"{law}: error of the trained layer over that of A*, same tasks", SOURCES[prior],
                        at["mse_trained"] / at["mse_of_formula_on_tasks"], low=0.99, high=1.01),
                bounded(f"{law}: terms even in y over the main term", "theory: 0", at["leaks"], high=0.02),
            ]  # fmt: skip
        for law, (source, value) in STEPS.items():
            at = ds.sel(law=law)
            rows += [
                near(f"step size, {law}: closed form", source, value, float(at["step_formula"]), within=2e-4),
                bounded(f"step size, {law}: least squares over closed form", source,
                        at["step_least_squares"] / at["step_formula"], low=0.985, high=1.015),
            ]  # fmt: skip
        white = ds.sel(pairs=PAIRS)
        return [
            *rows,
            near(f"Σ = Ω = I: least error of a layer, {PAIRS} pairs", "closed form d (d + 1 + σ²) / (n + d + 1 + σ²)",
                 D * (D + 1 + NOISE_VAR) / (PAIRS + D + 1 + NOISE_VAR), float(white["white_formula"]), within=1e-6),
            near(f"Σ = Ω = I: error of Bayes, {PAIRS} pairs", "an earlier independent estimate", 0.170,
                 float(white["white_bayes"]), within=0.03),
        ]  # fmt: skip

    def notes(self, ds: xr.Dataset) -> list[str]:
        _, steps = self.starts
        near_best = (ds["mse_of_starts"] < 1.1 * ds["mse_formula"]).sum("start")
        found = ", ".join(f"{int(near_best.sel(prior=prior))} for {law}" for prior, law in PRIORS.items())
        return [
            f"Of {ds.sizes['start']} starts, within 10 % of the least error after {steps} steps: {found}. Only the "
            "best start is trained on; a start can stay on a plateau, where some directions of A are not learned or "
            "the terms even in y take their place."
        ]

    def figures(self, ds: xr.Dataset) -> list[Picture]:
        return [
            Picture("matrices", CAPTIONS["matrices"], _matrices(ds)),
            Picture("training", CAPTIONS["training"], _training(ds)),
            Picture("bayes", CAPTIONS["bayes"], _bayes(ds)),
        ]

    def choices(self) -> list[Choice]:
        return [
            Choice("optimiser", "Adam; the best of several starts goes on, learning rate 1e-3 then 1e-4", "ours",
                   "Ahn et al.: 3 layers, gradient clipping, own sampling law"),
            Choice("read-out", "the sum over the context as it is, no minus sign", "paper",
                   "Ahn et al.: divided by n and negated; the same function"),
        ]  # fmt: skip


SOURCES = {
    "identity": f"{AHN}, theorem 1 (with noise)",
    "inverse": f"{MAHANKALI}, theorem 2",
    "generic": "one formula for all of them",
}
STEPS = {
    "linear, n=20, d=5": (f"{MAHANKALI}, theorem 1", 0.037736),
    "ReLU network, n=20, d=5": (f"{MAHANKALI}, theorem 3", 0.03017),
    "uniform inputs, n=d=10": ("closed form for independent coordinates", 0.5747),
}
CAPTIONS = {
    "matrices": (
        "The matrix A of the prediction (Σ y x)ᵀ A x_q for three laws of the teacher: closed form, and the one in the "
        "weights of a layer trained by Adam."
    ),
    "training": (
        "While it is trained: distance of the layer's matrix to A*, over the norm of A* (left), and its squared "
        "error over the least possible (right). The learning rate falls twice, where the best start is trained on and "
        "again by ten after that."
    ),
    "bayes": (
        "Error of the best single layer of linear attention and of the Bayes predictor by context length, Σ = Ω = I, "
        "σ² = 0.5. A layer has one matrix for all prompts where Bayes inverts the XᵀX of each, so it stays behind. "
        "Diamonds: values of an earlier independent estimate."
    ),
}


def covariances(prior: str) -> tuple[Tensor, Tensor]:
    """Σ and Ω of a case, float64."""
    cov = _with_eigenvalues(torch.linspace(0.5, 2.0, D, dtype=torch.float64), seed=1)
    others = _with_eigenvalues(torch.tensor([0.3, 0.7, 1.0, 1.5, 2.5], dtype=torch.float64), seed=2)
    return cov, {"identity": torch.eye(D, dtype=torch.float64), "inverse": cov.inverse(), "generic": others}[prior]


def optimum(prior: str) -> lsa_optimal:
    """The best layer for a case."""
    return lsa_optimal(PAIRS, *covariances(prior), NOISE_VAR)


def draw(B: int, /, *, prior: str, seed: int | torch.Generator) -> Tasks:
    """Tasks of a case."""
    cov, prior_cov = covariances(prior)
    return make_regression(B, PAIRS, D, cov=cov, prior_cov=prior_cov, noise=NOISE_VAR**0.5, seed=seed)


def _with_eigenvalues(values: Tensor, seed: int) -> Tensor:
    """A symmetric matrix with these eigenvalues in a random basis."""
    basis, _ = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    matrix: Tensor = basis @ torch.diag(values) @ basis.mT
    return matrix


def _unheard(fraction: float) -> None:
    """Starts are short and are counted, not followed."""


def _least_squares(tasks: Tasks) -> Tensor:
    """A that predicts best on these tasks, by the normal equations of the products of (Σ y x) and x_q."""
    shown = torch.einsum("bnd,bn->bd", tasks.X.double(), tasks.y.double())
    features = torch.einsum("bi,bj->bij", shown, tasks.xq.double()).flatten(1)
    d = tasks.X.shape[-1]
    fitted: Tensor = torch.linalg.solve(features.mT @ features, features.mT @ tasks.yq.double()).reshape(d, d)
    return fitted


def _distance(matrix: Tensor, best: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double() - best) / torch.linalg.matrix_norm(best))


def _by_length(B: int) -> xr.Dataset:
    """Errors of the best layer and of Bayes for white inputs and teachers."""
    formula, bayes = [], []
    for n in CONTEXTS:
        formula.append(lsa_optimal(n, 1.0, 1.0, NOISE_VAR, d=D).mse)
        tasks = make_regression(B, n, D, cov=1.0, noise=NOISE_VAR**0.5, seed=EVALUATION_SEED)
        bayes.append(2 * half_mse(bayes_ridge(NOISE_VAR), tasks))
    error = "mean squared error against noiseless targets, white inputs and teachers:"
    return described(
        {
            "white_formula": ("pairs", formula, "y²", f"{error} the best layer"),
            "white_bayes": ("pairs", bayes, "y²", f"{error} Bayes"),
        },
        coords={"pairs": list(CONTEXTS)},
    )


def _steps(B: int) -> xr.Dataset:
    """Best "sum" steps of three laws: closed form and least squares over drawn tasks."""
    seed = EVALUATION_SEED
    laws = {
        "linear, n=20, d=5": (
            float(lsa_optimal(20, 1.0, 1.0, 0.5, d=5).matrix[0, 0]),
            make_regression(B, 20, 5, cov=1.0, noise=0.5**0.5, seed=seed),
        ),
        "ReLU network, n=20, d=5": (
            relu_network_step(20, 5, 8, 0.3),
            make_regression(B, 20, 5, cov=1.0, noise=0.3**0.5, teacher=ReLUNetwork(8, scale=1.0), seed=seed),
        ),
        "uniform inputs, n=d=10": (
            float(lsa_optimal(10, 1 / 12, 1.0, 0.09, d=10, kurtosis=9 / 5).matrix[0, 0]),
            make_regression(B, 10, 10, noise=0.3, seed=seed),
        ),
    }
    fitted = []
    for _, tasks in laws.values():
        unit = torch.einsum("bnd,bn,bd->b", tasks.X.double(), tasks.y.double(), tasks.xq.double())
        fitted.append(float((unit * tasks.yq).sum() / unit.square().sum()))
    formula = [value for value, _ in laws.values()]
    return described(
        {
            "step_formula": ("law", formula, "1/x²", "the best step of the sum of gradients, in closed form"),
            "step_least_squares": ("law", fitted, "1/x²", "the same by least squares over drawn tasks"),
        },
        coords={"law": list(laws)},
    )


def _matrices(ds: xr.Dataset) -> go.Figure:
    fig = panels([f"{what}, {law}" for what in ("A*", "trained") for law in PRIORS.values()], spacing=0.06)
    for column, prior in enumerate(PRIORS):
        bound = float(abs(ds["A_formula"].sel(prior=prior)).max())
        for row, name in enumerate(("A_formula", "A_trained")):
            values = ds[name].sel(prior=prior, drop=True).assign_coords(row=range(1, D + 1), column=range(1, D + 1))
            heat(fig, values, place(3 * row + column), form=".4f", scale="RdBu_r", low=-bound, high=bound)
    return finished(fig, "The preconditioner, in closed form and trained", 620).update_layout(margin={"b": 50})


def _training(ds: xr.Dataset) -> go.Figure:
    fig = panels(["distance to A*", "error over the least possible"], columns=2, spacing=0.12)
    for colour, (prior, law) in zip(COLOURS, PRIORS.items(), strict=False):
        at = ds.sel(prior=prior, drop=True)
        line(fig, at["distance"], law, colour, place(0, 2))
        line(fig, at["mse"] / at["mse_formula"], law, colour, place(1, 2), legend=False)
    for index in range(2):
        named_axes(fig, place(index, 2), "training step", log_y=True)
    return finished(fig, "Training finds the optimum", 420)


def _bayes(ds: xr.Dataset) -> go.Figure:
    fig = panels(["squared error against noiseless targets"], columns=1)
    line(fig, ds["white_formula"], "best linear attention layer", BLUE, place(0))
    line(fig, ds["white_bayes"], "Bayes", ORANGE, place(0))
    readings(fig, [20, 20], [1.226, 0.170], "earlier estimate", place(0))
    named_axes(fig, place(0), "pairs in the prompt", log_x=True, log_y=True)
    fig.update_xaxes(tickvals=list(CONTEXTS))
    return finished(fig, "What one layer cannot do", 400)
