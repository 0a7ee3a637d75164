"""Learning algorithms as functions of a prompt: `algorithm(X, y, xq)` is its prediction, `algorithm.weights(X, y)` the
linear predictor that it found (None where it is not linear in the query).

Classes bear the lower-case names under which they are called; the repr of one is the call that makes it. All are
batched and differentiable in X, y and xq. Shapes: X [B, N, d], y [B, N] or [B, N, d_y], xq [B, d], predictions [B] or
[B, d_y], weights [B, d] or [B, d_y, d].

Two conventions for a step on (1/2) sum_i (w . x_i - y_i)^2 are in use, and the size of one is N times the other:
"mean", w <- w + eta/N sum_i (y_i - w . x_i) x_i, and "sum", the same without 1/N.

After an empty prompt (N = 0) every algorithm is where it starts, which is zero but for `gd(..., w0=...)`. Calls raise
InterpError for tensors that do not fit together. Garg et al. 2022 compare with `ols()`, `knn(3)` and the mean of
y_i x_i, which is `gd(1, 1.0)`; their Lasso and decision trees are left out, because scikit-learn is no dependency.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.icl.tasks.covariance import Covariance
from interp.icl.tasks.regression import start_weights
from interp.settings.checking import LARGEST, check_types, checked, shown


class Algorithm(ABC):
    """A prediction for the query from the context.

    Examples:
        >>> tasks = interp.icl.make_regression(200, N=10, d=3, seed=1)
        >>> interp.icl.ols()(tasks.X, tasks.y, tasks.xq).shape  # an algorithm is called like a model
        torch.Size([200])
    """

    def __post_init__(self) -> None:
        """Raise InterpError where a setting is not of its field's type; numbers are finite."""
        check_types(self)

    @property
    def name(self) -> str:
        """The call that makes this algorithm, a tensor by its shape alone."""
        settings = fields(self)  # type: ignore[arg-type]  # every algorithm is a dataclass, which their base is not
        values = {field.name: getattr(self, field.name) for field in settings}
        shown = {key: f"<{list(v.shape)}>" if isinstance(v, Tensor) else repr(v) for key, v in values.items()}
        return f"{type(self).__name__}({', '.join(f'{key}={text}' for key, text in shown.items())})"

    @abstractmethod
    def __call__(self, X: Float[Tensor, "B N d"], y: Tensor, xq: Float[Tensor, "B d"]) -> Tensor:
        """Predictions [B], or [B, d_y] for vector targets."""

    def weights(self, X: Float[Tensor, "B N d"], y: Tensor) -> Tensor | None:
        """The implicit linear predictor [B, d] or [B, d_y, d]; None where there is none."""
        return None


class LinearAlgorithm(Algorithm):
    """An algorithm whose prediction is w(X, y) . xq."""

    def __call__(self, X: Float[Tensor, "B N d"], y: Tensor, xq: Float[Tensor, "B d"]) -> Tensor:
        check_prompts(X, y, xq)
        return torch.einsum("b...d,bd->b...", self.weights(X, y), xq)

    def weights(self, X: Float[Tensor, "B N d"], y: Tensor) -> Tensor:
        check_prompts(X, y)
        if y.ndim == 2:
            return self._columns(X, y[..., None])[..., 0]
        return self._columns(X, y).mT

    @abstractmethod
    def _columns(self, X: Float[Tensor, "B N d"], Y: Float[Tensor, "B N d_y"]) -> Float[Tensor, "B d d_y"]:
        """One column of weights for each output."""


@dataclass(frozen=True, eq=False)
class gd(LinearAlgorithm):
    """Full-batch gradient descent on least squares.

    Args:
        steps: Number of steps.
        eta: Step size, one number or one for each step; has to be given. The best one is `GDLaw(...).best_eta`, or
            that of `tune_gd(tasks)`.
        step: What eta multiplies: the "mean" gradient over the context or the "sum".
        precond: A [d, d] matrix applied to every gradient.
        w0: Start, [d] or [d_y, d]; zero by default.

    Raises:
        InterpError: no step size, sizes that are not one for each step, and, when called, a `precond` or `w0` of other
            shape than the prompts ask for.

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, seed=1)
        >>> interp.icl.gd(steps=1, eta=5.0)(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([100])
    """

    steps: int = 1
    eta: float | tuple[float, ...] = math.nan
    step: Literal["mean", "sum"] = "mean"
    precond: Tensor | None = None
    w0: Tensor | None = None

    def __post_init__(self) -> None:
        checked("gd", "step", self.step, Literal["mean", "sum"])
        _check_steps(self.steps, "gd")
        if isinstance(self.eta, float) and math.isnan(self.eta):
            raise InterpError("gd needs a step size: gd(steps, eta), or tune_gd(tasks, steps) for the best one.")
        object.__setattr__(self, "eta", _per_step(self.eta, self.steps, "gd: eta"))
        super().__post_init__()

    def _columns(self, X: Float[Tensor, "B N d"], Y: Float[Tensor, "B N d_y"]) -> Float[Tensor, "B d d_y"]:
        (B, N, d), d_y = X.shape, Y.shape[-1]
        w = X.new_zeros(B, d, d_y)
        if self.w0 is not None:
            w = w + start_weights(self.w0, d_y, d).to(X).mT
        precond = None if self.precond is None else _fitting(self.precond, [(d, d)], "precond", X)
        for eta in _sizes(self.eta, self.steps):
            downhill = X.mT @ (Y - X @ w)
            if precond is not None:
                downhill = precond @ downhill
            w = w + (eta / max(N, 1) if self.step == "mean" else eta) * downhill
        return w


@dataclass(frozen=True)
class gdpp(LinearAlgorithm):
    """GD++: gradient descent that also transforms the inputs, x <- x - gamma sum_i x_i (x_i . x), at every step.

    The residuals and inputs of a step are those before it, for context and query alike. eta is a "mean" step (eta/N);
    gamma multiplies the UNNORMALISED XᵀX. The gamma of the last step changes nothing.

    Source: von Oswald et al. 2023, section 4 and appendix A.10. All transformed inputs are polynomials in XᵀX, so the
    prediction is linear in the query and the weights are exact.

    Args:
        steps: Number of steps.
        eta, gamma: One number for all steps or one for each.

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, seed=1)
        >>> interp.icl.gdpp(2, eta=5.0, gamma=0.1)(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([100])
    """

    steps: int
    eta: float | tuple[float, ...]
    gamma: float | tuple[float, ...]

    def __post_init__(self) -> None:
        _check_steps(self.steps, "gdpp")
        object.__setattr__(self, "eta", _per_step(self.eta, self.steps, "gdpp: eta"))
        object.__setattr__(self, "gamma", _per_step(self.gamma, self.steps, "gdpp: gamma"))

    def _columns(self, X: Float[Tensor, "B N d"], Y: Float[Tensor, "B N d_y"]) -> Float[Tensor, "B d d_y"]:
        # gram = XᵀX and slope = Xᵀr of the transformed inputs are all that a step needs
        gram, slope = X.mT @ X, X.mT @ Y
        query = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)  # [d, d] or [B, d, d]: original to transformed
        w = torch.zeros_like(slope)
        for eta, gamma in zip(_sizes(self.eta, self.steps), _sizes(self.gamma, self.steps), strict=True):
            size = eta / max(X.shape[1], 1)
            w = w + size * (query.mT @ slope)
            change = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device) - gamma * gram
            slope = change @ (slope - size * (gram @ slope))
            gram, query = change @ gram @ change, change @ query
        return w


@dataclass(frozen=True)
class newton(LinearAlgorithm):
    """Iterative Newton (Schulz) inversion of S = XᵀX: M <- 2 M - M S M, w = M Xᵀ y.

    The start is M_0 = Sᵀ / ‖S Sᵀ‖_F as in the release of Fu et al. 2024 ("Transformers learn higher-order optimization
    methods for in-context learning"), whose paper leaves the factor open. Then I - M_{k+1} S = (I - M_k S)².

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, seed=1)
        >>> interp.icl.newton(8)(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([100])
    """

    steps: int

    def __post_init__(self) -> None:
        _check_steps(self.steps, "newton")

    def inverse(self, X: Float[Tensor, "B N d"]) -> Float[Tensor, "B d d"]:
        """M after the steps, the approximation to (XᵀX)⁻¹."""
        S = X.mT @ X
        size = torch.linalg.matrix_norm(S @ S.mT, keepdim=True)
        M = S.mT / torch.where(size > 0, size, 1)
        for _ in range(self.steps):
            M = 2 * M - M @ S @ M
        return M

    def _columns(self, X: Float[Tensor, "B N d"], Y: Float[Tensor, "B N d_y"]) -> Float[Tensor, "B d d_y"]:
        return self.inverse(X) @ (X.mT @ Y)


@dataclass(frozen=True)
class ols(LinearAlgorithm):
    """Least squares; the solution of least norm where the context does not determine one.

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, seed=1)
        >>> interp.icl.ols()(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([100])
    """

    def _columns(self, X: Float[Tensor, "B N d"], Y: Float[Tensor, "B N d_y"]) -> Float[Tensor, "B d d_y"]:
        solution: Tensor = torch.linalg.pinv(X) @ Y
        return solution


@dataclass(frozen=True)
class ridge(LinearAlgorithm):
    """(XᵀX + lam I)⁻¹ Xᵀ y. The posterior mean for noise variance s² and weights N(0, t² I) is lam = s²/t².

    With fewer pairs than dimensions it is computed as Xᵀ (X Xᵀ + lam I)⁻¹ y, which is the same and, for lam = 0, the
    solution of least norm.

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, seed=1)
        >>> interp.icl.ridge(0.5)(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([100])
    """

    lam: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam < 0:
            raise InterpError(f"ridge needs a penalty of 0 or more, not {self.lam}.")

    def _columns(self, X: Float[Tensor, "B N d"], Y: Float[Tensor, "B N d_y"]) -> Float[Tensor, "B d d_y"]:
        _, N, d = X.shape
        penalty = self.lam * torch.eye(min(N, d), dtype=X.dtype, device=X.device)
        solution: Tensor
        if d > N:
            solution = X.mT @ torch.linalg.solve(X @ X.mT + penalty, Y)
        else:
            solution = torch.linalg.solve(X.mT @ X + penalty, X.mT @ Y)
        return solution


@dataclass(frozen=True, eq=False)
class bayes_ridge(LinearAlgorithm):
    """Posterior mean of w for y = w . x + N(0, noise_var) and w ~ N(0, prior_cov): (XᵀX + noise_var Ω⁻¹)⁻¹ Xᵀ y.

    Computed as Ω Xᵀ (X Ω Xᵀ + noise_var I)⁻¹ y, so Ω may be singular; noise_var has to be positive.

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, seed=1)
        >>> interp.icl.bayes_ridge(0.1)(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([100])
    """

    noise_var: float
    prior_cov: Covariance = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_var <= 0:
            raise InterpError(
                f"bayes_ridge needs a positive noise variance, not {self.noise_var}: without noise use ols()."
            )

    def _columns(self, X: Float[Tensor, "B N d"], Y: Float[Tensor, "B N d_y"]) -> Float[Tensor, "B d d_y"]:
        d = X.shape[-1]
        prior_cov = _fitting(torch.as_tensor(self.prior_cov), [(d, d), ()], "prior_cov", X)
        explained = prior_cov @ X.mT if prior_cov.ndim else prior_cov * X.mT
        noise = self.noise_var * torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
        mean: Tensor = explained @ torch.linalg.solve(X @ explained + noise, Y)
        return mean


@dataclass(frozen=True)
class sgd_one_pass(LinearAlgorithm):
    """One pass over the context in its order: w <- w - 2 alpha (x (x . w) - x y + lam w), from w = 0.

    Source: Akyürek et al. 2023 ("What learning algorithm is in-context learning?"). Their factor 2 is kept: alpha is
    half of a "sum" step. Their one batch step is `gd(1, 2 * alpha, step="sum")`.

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, seed=1)
        >>> interp.icl.sgd_one_pass(0.1)(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([100])
    """

    alpha: float
    lam: float = 0.0

    def _columns(self, X: Float[Tensor, "B N d"], Y: Float[Tensor, "B N d_y"]) -> Float[Tensor, "B d d_y"]:
        w = X.new_zeros(X.shape[0], X.shape[2], Y.shape[2])
        for x, y in zip(X.unbind(1), Y.unbind(1), strict=True):
            error = torch.einsum("bd,bdo->bo", x, w) - y
            w = w - 2 * self.alpha * (x[:, :, None] * error[:, None, :] + self.lam * w)
        return w


@dataclass(frozen=True)
class NearestNeighbours(Algorithm):
    """Mean label of the k nearest inputs, each alike ("uniform") or weighted by 1 / distance² ("distance").

    A neighbour at distance zero takes all the weight. Uniform weights are piecewise constant in the query, so their
    sensitivity to it is zero.
    """

    k: int = 3
    weighting: Literal["uniform", "distance"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise InterpError(f"There are no {self.k} nearest neighbours: ask for 1 or more.")

    def __call__(self, X: Float[Tensor, "B N d"], y: Tensor, xq: Float[Tensor, "B d"]) -> Tensor:
        check_prompts(X, y, xq)
        distance = (X - xq[:, None]).square().sum(-1)
        nearest, index = distance.topk(min(self.k, X.shape[1]), largest=False)
        labels = y.take_along_dim(index if y.ndim == 2 else index[..., None], dim=1)
        if self.weighting == "uniform":
            share = 1 + 0 * nearest  # keeps the query in the graph: its gradient exists and is zero
        else:
            touching = nearest == 0
            apart = 1 / torch.where(touching, 1, nearest)
            share = torch.where(touching.any(1, keepdim=True), touching.to(apart), apart)
        share = share / share.sum(1, keepdim=True)
        return torch.einsum("bk,bk...->b...", share, labels)


def knn(k: int = 3, weights: Literal["uniform", "distance"] = "uniform") -> NearestNeighbours:
    """`NearestNeighbours`. A function, because a field called weights would hide the method of that name.

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, seed=1)
        >>> interp.icl.knn(3)(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([100])
    """
    return NearestNeighbours(k, weights)


def check_prompts(X: Tensor, y: Tensor, xq: Tensor | None = None) -> None:
    """Raise InterpError unless these are prompts: shapes as in the head of this file, and one dtype."""
    fits = X.ndim == 3 and y.ndim in (2, 3) and y.shape[:2] == X.shape[:2]
    if not fits or (xq is not None and xq.shape != (X.shape[0], X.shape[2])):
        found = ", ".join(str(list(tensor.shape)) for tensor in (X, y, xq) if tensor is not None)
        raise InterpError(f"prompts are X [B, N, d], y [B, N] or [B, N, d_y] and queries xq [B, d], not {found}.")
    if len(dtypes := {tensor.dtype for tensor in (X, y, xq) if tensor is not None}) > 1:
        raise InterpError(f"X, y and xq are of one dtype, not {' and '.join(sorted(map(str, dtypes)))}: use .to().")


def _check_steps(steps: Any, name: str) -> None:
    if not isinstance(steps, Integral) or not 0 <= int(steps) <= LARGEST:
        raise InterpError(f"{name} takes a whole number of steps, 0 or more, not {shown(steps)}.")


def _fitting(given: Tensor, shapes: Sequence[tuple[int, ...]], name: str, X: Tensor) -> Tensor:
    """`given` like X, if it has one of the shapes that the prompts X ask for."""
    given = torch.as_tensor(given)
    if tuple(given.shape) not in shapes:
        asked = " or ".join(str(list(shape)) if shape else "a number" for shape in shapes)
        raise InterpError(f"{name} is {asked} for these prompts, not {list(given.shape)}.")
    return given.to(X)


def _per_step(size: float | Sequence[float] | Tensor, steps: int, name: str) -> float | tuple[float, ...]:
    if isinstance(size, Tensor):
        size = size.tolist()
    owner, _, setting = name.partition(": ")
    plain: float | tuple[float, ...] = checked(owner, setting, size, float | tuple[float, ...])
    if isinstance(plain, tuple) and len(plain) != steps:
        raise InterpError(f"{setting} has {len(plain)} values for {steps} steps: give one number or {steps}.")
    return plain


def _sizes(size: float | tuple[float, ...], steps: int) -> tuple[float, ...]:
    return size if isinstance(size, tuple) else (size,) * steps
