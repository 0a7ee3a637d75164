"""Softmax regression in context, and how far a weight shift and a data shift move it.

f(A, x) = softmax(A x) for n words a_i of dimension d, the rows of A, and a target distribution b over them; the loss is
(1/2) ‖f - b‖². A step of gradient descent moves x, attention moves A.

Source: Li, Song, Xia, Yu and Zhou 2023 ("The closeness of in-context learning and weight shifting for softmax
regression"). They bound each move by M_R = n^1.5 exp(10 R²) times its size. Two things are added here: the tight
constants, ½‖A‖₂ and ½‖x‖₂, and the data shift that does exactly what a weight shift does. The tasks and the measures of
`closeness` are ours: the paper states no sampling law and prints no numbers.

A prompt is a `Tasks`: X holds A [B, n, d], y holds b [B, n], xq one more word a_q [B, d] that is not in A, and yq its
score a_q . x*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import scipy.optimize
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.icl.learners.algorithms import LinearAlgorithm
from interp.icl.measures._means import Mean, mean, mean_of_defined
from interp.icl.tasks.regression import Draws, Tasks
from interp.results.described import Row, described, with_error
from interp.settings.checking import checked

Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(A [B, n, d], b [B, n], word [B, d]) -> score of the word [B]."""


def make_softmax_regression(
    B: int,
    n: int,
    d: int,
    radius: float = 1.0,
    *,
    seed: int | torch.Generator = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Tasks:
    """B tasks with a_i ~ N(0, I/d), x* ~ N(0, radius² I/d) and b = softmax(A x*)."""
    for name, size in (("B", B), ("n", n), ("d", d)):
        if checked("make_softmax_regression", name, size, int) < 1:
            raise InterpError(f"make_softmax_regression: {name} should be at least 1, found {size}.")
    checked("make_softmax_regression", "radius", radius, float)
    draws = Draws.of(seed, dtype, device)
    words = draws.normal(B, n + 1, d) / math.sqrt(d)
    x = draws.normal(B, d) * (radius / math.sqrt(d))
    scores = torch.einsum("bnd,bd->bn", words, x)
    about = {
        "x_law": "normal",
        "x_variance": 1 / d,
        "x_kurtosis": 3.0,
        "teacher": "softmax",
        "radius": float(radius),
        "N": n,
        "d": d,
        "seed": seed if isinstance(seed, int) else "continued generator",
    }
    return Tasks(words[:, :n], scores[:, :n].softmax(1), words[:, n], scores[:, n], x, about)


def distribution(A: Float[Tensor, "B n d"], x: Float[Tensor, "B d"]) -> Float[Tensor, "B n"]:
    """f = softmax(A x)."""
    return torch.einsum("bnd,bd->bn", A, x).softmax(1)


def softmax_loss(A: Float[Tensor, "B n d"], x: Float[Tensor, "B d"], b: Float[Tensor, "B n"]) -> Float[Tensor, " B"]:
    """(1/2) ‖softmax(A x) - b‖²."""
    return (distribution(A, x) - b).square().sum(1) / 2


def softmax_gradient(
    A: Float[Tensor, "B n d"], x: Float[Tensor, "B d"], b: Float[Tensor, "B n"]
) -> Float[Tensor, "B d"]:
    """Gradient of `softmax_loss` in x: Aᵀ (diag(f) - f fᵀ) (f - b)."""
    f = distribution(A, x)
    rest = f - b
    return torch.einsum("bnd,bn->bd", A, f * (rest - (f * rest).sum(1, keepdim=True)))


@dataclass(frozen=True)
class softmax_gd(LinearAlgorithm):
    """Gradient descent on `softmax_loss` from x = 0. The prediction is the query word's score a_q . x, the weights x.

    The first step is (eta/n) sum_i (b_i - 1/n) a_i: one layer of linear attention on the tokens (a_i, b_i - 1/n).

    Args:
        steps: Number of steps.
        eta: Step size on the loss as it stands, without 1/n. `tune_softmax_gd` gives the best one.
    """

    steps: int
    eta: float

    def _columns(self, X: Float[Tensor, "B n d"], Y: Float[Tensor, "B n 1"]) -> Float[Tensor, "B d 1"]:
        if Y.shape[2] != 1:
            raise InterpError(f"Softmax regression has one target distribution, not {Y.shape[2]}: give y as [B, n].")
        x = X.new_zeros(X.shape[0], X.shape[2])
        for _ in range(self.steps):
            x = x - self.eta * softmax_gradient(X, x, Y[..., 0])
        return x[..., None]


def tune_softmax_gd(tasks: Tasks, steps: int = 1) -> softmax_gd:
    """The step size of least mean `softmax_loss` on these tasks: a grid over four decades, then refined."""
    A, b = tasks.X.double(), tasks.y.double()
    unit = math.log(A.shape[1] / float(A.square().mean()))  # the curvature at x = 0 is about n var(a) / n²

    def loss(log_eta: float) -> float:
        return float(softmax_loss(A, softmax_gd(steps, math.exp(log_eta)).weights(A, b), b).mean())

    grid = [unit + 0.25 * k for k in range(-18, 19)]
    losses = [loss(log_eta) for log_eta in grid]
    best = losses.index(min(losses))
    if best in (0, len(grid) - 1):
        raise InterpError(f"The best step lies outside {math.exp(grid[0]):.3g} to {math.exp(grid[-1]):.3g}.")
    bounds = (grid[best - 1], grid[best + 1])
    fit = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return softmax_gd(steps, math.exp(fit.x))


def weight_constant(A: Float[Tensor, "B n d"]) -> Float[Tensor, " B"]:
    """½‖A‖₂, the least C with ‖f(A, x + Δx) - f(A, x)‖ <= C ‖Δx‖ that depends on ‖A‖₂ alone."""
    constant: Tensor = torch.linalg.matrix_norm(A, 2) / 2
    return constant


def data_constant(x: Float[Tensor, "B d"]) -> Float[Tensor, " B"]:
    """½‖x‖, the least C with ‖f(A + ΔA, x) - f(A, x)‖ <= C ‖ΔA‖₂ that depends on ‖x‖ alone."""
    constant: Tensor = x.norm(dim=1) / 2
    return constant


def log10_paper_constant(n: int, radius: float) -> float:
    """log10 of M_R = n^1.5 exp(10 R²), the paper's constant for both shifts (for R >= 4); 71.6 at n = 25, R = 4."""
    return 1.5 * math.log10(n) + 10 * radius**2 / math.log(10)


def equivalent_data_shift(
    A: Float[Tensor, "B n d"], x: Float[Tensor, "B d"], dx: Float[Tensor, "B d"]
) -> Float[Tensor, "B n d"]:
    """The smallest ΔA with softmax((A + ΔA) x) = softmax(A (x + Δx)): v xᵀ / ‖x‖², v = A Δx less its mean.

    Softmax ignores a constant, so v need only be right up to one; less its mean it is shortest, ‖ΔA‖₂ = ‖v‖ / ‖x‖.

    Raises:
        InterpError: some x is 0, where the data have no effect.
    """
    if bool((x == 0).all(1).any()):
        raise InterpError("At x = 0 no change of the data moves softmax(A x): take x after the first step.")
    v = torch.einsum("bnd,bd->bn", A, dx)
    v = v - v.mean(1, keepdim=True)
    return v[:, :, None] * (x / x.square().sum(1, keepdim=True))[:, None, :]


def shifted_target(before: Float[Tensor, "B n"], after: Float[Tensor, "B n"], b: Tensor) -> Float[Tensor, "B n"]:
    """The target b + f_before - f_after for which the unmoved problem has the residual of the moved one."""
    return b + before - after


def closeness(model: Predictor, algorithm: softmax_gd, tasks: Tasks) -> xr.Dataset:
    """How close a trained layer comes to gradient descent on softmax regression, with standard errors over tasks.

    Compared are the scores of the held-out word, their sensitivities to it, and the distributions over the context's
    own words that follow from scoring each of them. f_0 is the uniform distribution of x = 0.

    Returns:
        A Dataset of scalars, each with `<name>_se`; a cosine with a zero vector is left out of its mean.
    """
    A, b, word = tasks.X, tasks.y, tasks.xq
    x = algorithm.weights(A, b)
    f_gd, f_model = distribution(A, x), _scores_of_own_words(model, A, b).softmax(1)
    f_0 = 1 / A.shape[1]
    score, slope = _score_and_slope(model, A, b, word)
    moved = (f_gd - f_0).norm(dim=1) / x.norm(dim=1)
    found: dict[str, tuple[Mean, str]] = {
        "distribution_diff": (mean((f_model - f_gd).norm(dim=1)), "L2 norm of f_model - f_GD"),
        "total_variation": (mean((f_model - f_gd).abs().sum(1) / 2), "half the L1 norm of f_model - f_GD"),
        "shift_cos": (mean_of_defined(_cosine(f_model - f_0, f_gd - f_0)), "cosine of f_model - f_0 and f_GD - f_0"),
        "score_diff": (mean((score - (word * x).sum(1)).abs()), "absolute difference of the held-out word's scores"),
        "slope_diff": (mean((slope - x).norm(dim=1)), "L2 norm of the difference of d score / d a_q"),
        "slope_cos": (mean_of_defined(_cosine(slope, x)), "cosine of d score / d a_q"),
        "moved": (mean(moved), "how far GD moves f for its move of x, norm over norm"),
        "of_tight_bound": (mean(moved / weight_constant(A)), "the same as a share of its tight bound, half of ||A||_2"),
        "loss_model": (mean((f_model - b).square().sum(1) / 2), "half the squared distance of f_model to b"),
        "loss_gd": (mean((f_gd - b).square().sum(1) / 2), "half the squared distance of f_GD to b"),
    }
    radius = max(4.0, float(torch.linalg.matrix_norm(A, 2).max()), float(x.norm(dim=1).max()))
    rows: dict[str, Row] = {}
    for name, (value, description) in found.items():
        rows |= with_error(name, Row((), value.value, "1", description), value.se)
    description = f"log10 of the published constant n^1.5 exp(10 R^2) at R = {radius:.3g}"
    rows["log10_paper_constant"] = Row((), log10_paper_constant(A.shape[1], radius), "1", description)
    return described(rows, attrs={"tasks": len(tasks), **tasks.about, "algorithm": algorithm.name})


@torch.no_grad()
def _scores_of_own_words(model: Predictor, A: Tensor, b: Tensor) -> Float[Tensor, "B n"]:
    return torch.stack([model(A, b, word) for word in A.unbind(1)], dim=1)


def _score_and_slope(model: Predictor, A: Tensor, b: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
    word = word.detach().clone().requires_grad_()
    with torch.enable_grad():
        score = model(A, b, word)
        slope = torch.autograd.grad(score.sum(), word)[0]
    return score.detach(), slope


def _cosine(a: Float[Tensor, "B k"], b: Float[Tensor, "B k"]) -> Float[Tensor, " B"]:
    """NaN where one of them is 0."""
    cosines: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return cosines
