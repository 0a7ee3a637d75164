"""Prompts from another distribution than the training one.

Shifts of the inputs are values for `make_regression(..., shift=...)`, applied before the teacher labels them. Sources:
Garg et al. 2022 and their release for the first five (there x ~ N(0, I)); von Oswald et al. 2023 for
`out_of_distribution` and `corrupt_targets`.

Scales need nothing from here: `scale` or `cov` change the inputs, `prior_cov` (the square) a linear teacher.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.icl.tasks.regression import Draws, Tasks, make_regression
from interp.settings.checking import Checked, checked

Inputs = tuple[Float[Tensor, "B N d"], Float[Tensor, "B d"]]


@dataclass(frozen=True)
class SkewedCovariance:
    """Standard deviations in proportion to 1, 1/2, ..., 1/d along one random basis, total variance unchanged."""

    def __call__(self, X: Float[Tensor, "B N d"], xq: Float[Tensor, "B d"], draws: Draws) -> Inputs:
        ranks = torch.arange(1, X.shape[-1] + 1, dtype=X.dtype, device=X.device)
        return _reshaped(X, xq, 1 / ranks, draws)


@dataclass(frozen=True)
class HalfSubspace:
    """All inputs in one random subspace of half the dimensions (rounded down), total variance unchanged."""

    def __call__(self, X: Float[Tensor, "B N d"], xq: Float[Tensor, "B d"], draws: Draws) -> Inputs:
        d = X.shape[-1]
        if d < 2:
            raise InterpError("One input dimension has no half: use d of at least 2.")
        return _reshaped(X, xq, (torch.arange(d, device=X.device) < d // 2).to(X), draws)


@dataclass(frozen=True)
class Quadrants(Checked):
    """The context of each task in one random quadrant; the query where it was, or in the opposite one."""

    query: Literal["anywhere", "opposite"] = "anywhere"

    def __call__(self, X: Float[Tensor, "B N d"], xq: Float[Tensor, "B d"], draws: Draws) -> Inputs:
        sign = 2.0 * draws.integers(2, len(X), X.shape[-1]).to(X) - 1
        return X.abs() * sign[:, None], xq if self.query == "anywhere" else -xq.abs() * sign


@dataclass(frozen=True)
class OrthogonalQuery:
    """The query's component orthogonal to all of its context, at the query's original length. Needs N < d."""

    def __call__(self, X: Float[Tensor, "B N d"], xq: Float[Tensor, "B d"], draws: Draws) -> Inputs:
        pairs, d = X.shape[1:]
        if pairs >= d:
            raise InterpError(f"{pairs} inputs span all {d} dimensions, nothing is orthogonal to them: use N < {d}.")
        basis = torch.linalg.qr(X.mT).Q  # [B, d, N]
        rest = xq - torch.einsum("bdn,bn->bd", basis, torch.einsum("bdn,bd->bn", basis, xq))
        return X, rest * (xq.norm(dim=1, keepdim=True) / rest.norm(dim=1, keepdim=True))


@dataclass(frozen=True)
class CopiedQuery:
    """The query is one of the context's inputs, at random."""

    def __call__(self, X: Float[Tensor, "B N d"], xq: Float[Tensor, "B d"], draws: Draws) -> Inputs:
        chosen = draws.integers(X.shape[1], len(X), 1, 1)
        return X, X.take_along_dim(chosen, dim=1)[:, 0]


@dataclass(frozen=True)
class UnitContext(Checked):
    """Context and query of each task divided by the Frobenius norm of its context [N, d], then times alpha."""

    alpha: float = 1.0

    def __call__(self, X: Float[Tensor, "B N d"], xq: Float[Tensor, "B d"], draws: Draws) -> Inputs:
        factor = self.alpha / X.norm(dim=(1, 2))
        return X * factor[:, None, None], xq * factor[:, None]


def out_of_distribution(
    B: int,
    N: int,
    d: int,
    family: Literal["uniform", "normal", "exponential", "laplace"],
    alpha: float,
    variant: Literal["code", "paper"] = "code",
    **settings: Any,
) -> Tasks:
    """Inputs from another family or range, as in the generalisation figures of von Oswald et al.

    Paper and released code differ. "paper": U(-alpha, alpha), or alpha times a sample at unit scale. "code", which made
    the figures: U(-alpha/2, alpha/2), and for the other families alpha times the sample divided by the Frobenius norm
    of its whole context (`UnitContext`). Training is at alpha = 1 in both.

    Args:
        settings: Passed on to `make_regression`: noise, teacher, seed, dtype, ...
    """
    if not isinstance(variant, str) or variant not in ("code", "paper"):
        raise InterpError(f"variant={variant!r}: choose 'code' or 'paper'.")
    checked("out_of_distribution", "alpha", alpha, float)
    if isinstance(family, str) and family == "uniform":
        tasks = make_regression(B, N, d, alpha / 2 if variant == "code" else alpha, **settings)
    elif variant == "code":
        tasks = make_regression(B, N, d, x=family, shift=UnitContext(alpha), **settings)
    else:
        tasks = make_regression(B, N, d, x=family, scale=alpha, **settings)
    return dataclasses.replace(tasks, about=tasks.about | {"variant": variant, "alpha": float(alpha)})


def corrupt_targets(tasks: Tasks, k: int, seed: int | torch.Generator = 0) -> Tasks:
    """The same tasks with `k` context labels of each, at random places, replaced by N(0, 1).

    Raises:
        InterpError: k is not between 0 and N.
    """
    B, N = tasks.y.shape[:2]
    if not 0 <= k <= N:
        raise InterpError(f"{k} of {N} context labels cannot be corrupted: choose 0 to {N}.")
    draws = Draws.of(seed, tasks.y.dtype, tasks.y.device)
    rank = draws.uniform(B, N).argsort(dim=1).argsort(dim=1)
    corrupted = (rank < k).reshape(B, N, *[1] * (tasks.y.ndim - 2))
    y = torch.where(corrupted, draws.normal(*tasks.y.shape), tasks.y)
    return dataclasses.replace(tasks, y=y, about=tasks.about | {"corrupted_targets": k})


def rescale_labels(tasks: Tasks, deviation: float | None = None) -> Tasks:
    """The same tasks with all labels divided by one number, so that those of the context have this deviation.

    Garg et al. rescale noisy labels (noise 1) to sqrt(d), the deviation of w . x without noise; that is the default.
    """
    factor = (math.sqrt(tasks.X.shape[-1]) if deviation is None else deviation) / tasks.y.std()
    w = None if tasks.w is None else tasks.w * factor
    about = tasks.about | {"label_factor": float(factor)}
    return dataclasses.replace(tasks, y=tasks.y * factor, yq=tasks.yq * factor, w=w, about=about)


def _reshaped(X: Tensor, xq: Tensor, deviations: Tensor, draws: Draws) -> Inputs:
    """Multiplied by a symmetric matrix with these eigenvalues, scaled to keep the total variance, in a random basis."""
    d = len(deviations)
    basis = torch.linalg.qr(draws.normal(d, d)).Q
    matrix = (basis * (deviations * math.sqrt(d) / deviations.norm())) @ basis.mT
    return X @ matrix, xq @ matrix
