"""The best that one layer of linear attention, gradient descent and GD++ can do.

`lsa_optimal` is in closed form for a law of tasks; `tune_gd` and `tune_gdpp` fit the few numbers of gradient descent
to given tasks, which makes them controls to compare a trained model with on the same tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.icl.learners.algorithms import LinearAlgorithm, gd, gdpp
from interp.icl.tasks.covariance import Covariance, checked_covariance
from interp.icl.tasks.regression import Tasks
from interp.settings.checking import checked


@dataclass(frozen=True, eq=False)
class lsa_optimal(LinearAlgorithm):
    """The global minimiser of the population loss over all single layers of linear attention.

    y_hat = (sum_i y_i x_i)ᵀ A* xq for x ~ N(0, Σ), w ~ N(0, Ω), y = w . x + N(0, σ²) and n pairs, with

        A* = [(n + 1) Σ + (tr(ΩΣ) + σ²) Ω⁻¹]⁻¹.

    Sources: one formula for Ahn et al. 2023 theorem 1 (Ω = I, σ = 0; their Q is -n A*), Zhang, Frei and Bartlett 2023
    (Γ⁻¹ / n), Mahankali, Hashimoto and Ma 2023 theorems 1 (Σ = Ω = I) and 2 (Ω = Σ⁻¹). The sum over the context is not
    divided by n, there is no residual and no minus sign at the read-out. For independent coordinates of another law
    (Σ diagonal) its kurtosis changes A*; 9/5 is the uniform law's.

    Args:
        n: Context pairs.
        cov, prior_cov: Σ and Ω, [d, d] or a number for that multiple of the identity.
        noise_var: σ².
        d: Input dimension, needed where both covariances are numbers.
        kurtosis: E x⁴ / (E x²)² of the independent coordinates, 3 for Gaussian inputs.

    Raises:
        InterpError: n below 1, a negative variance, covariances that are none or do not fit together (those once the
            matrix is asked for), or, when called, prompts of another dimension.

    Examples:
        >>> tasks = interp.icl.make_regression(500, N=10, d=3, seed=1)
        >>> interp.icl.lsa_optimal(10, d=3)(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([500])
    """

    n: int
    cov: Covariance = 1.0
    prior_cov: Covariance = 1.0
    noise_var: float = 0.0
    d: int | None = None
    kurtosis: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1 or self.noise_var < 0:
            raise InterpError(
                f"A layer reads n = 1 pair or more with noise_var = 0 or more, not n = {self.n} and noise_var = "
                f"{self.noise_var}."
            )
        if self.kurtosis != 3.0 and not torch.equal(self._Sigma, torch.diag(self._Sigma.diagonal())):
            raise InterpError("A kurtosis other than 3 is for independent coordinates: give a diagonal cov.")

    @cached_property
    def matrix(self) -> Float[Tensor, "d d"]:
        """A*, float64."""
        Sigma, Omega = self._Sigma, self._Omega
        # E[b bᵀ] / n for b = sum_i y_i x_i; by the normal equations A* = E[b bᵀ]⁻¹ n Σ Ω
        second = (self.n + 1) * Sigma @ Omega @ Sigma + ((Omega @ Sigma).trace() + self.noise_var) * Sigma
        second = second + (self.kurtosis - 3) * torch.diag(Sigma.diagonal().square() * Omega.diagonal())
        best: Tensor = torch.linalg.solve(second, Sigma @ Omega)
        return best

    @property
    def mse(self) -> float:
        """Least population squared error (no factor 1/2) against a target without noise."""
        Sigma, Omega = self._Sigma, self._Omega
        return float((Sigma @ Omega).trace() - self.n * (Sigma @ Omega @ Sigma @ self.matrix).trace())

    @cached_property
    def _Sigma(self) -> Float[Tensor, "d d"]:
        return self._square(self.cov)

    @cached_property
    def _Omega(self) -> Float[Tensor, "d d"]:
        return self._square(self.prior_cov)

    def _square(self, cov: Covariance) -> Float[Tensor, "d d"]:
        matrix = checked_covariance(cov, self._dimension)
        return matrix if matrix.ndim else matrix * torch.eye(self._dimension, dtype=torch.float64)

    @property
    def _dimension(self) -> int:
        shapes = (torch.as_tensor(cov).shape for cov in (self.cov, self.prior_cov))
        sizes = {shape[0] for shape in shapes if shape} | ({self.d} if self.d is not None else set())
        if len(sizes) != 1:
            raise InterpError(
                f"The input dimension is {'not given' if not sizes else f'{sorted(sizes)} at once'}: "
                "pass d, or covariances of one size."
            )
        return sizes.pop()

    def _columns(self, X: Float[Tensor, "B N d"], Y: Float[Tensor, "B N d_y"]) -> Float[Tensor, "B d d_y"]:
        if X.shape[-1] != len(self.matrix):
            raise InterpError(
                f"This layer is the best for {len(self.matrix)} inputs, and the prompts have {X.shape[-1]}."
            )
        return self.matrix.to(X).mT @ (X.mT @ Y)


def relu_network_step(n: int, d: int, hidden: int, noise_var: float = 0.0) -> float:
    """`nonlinear_step` for y = v . relu(W x) + N(0, noise_var) with `hidden` units, x, v and W all N(0, 1).

    Examples:
        >>> 0 < interp.icl.relu_network_step(n=10, d=3, hidden=16) < 1
        True
    """
    for name, size in (("n", n), ("d", d), ("hidden", hidden)):
        if checked("relu_network_step", name, size, int) < 1:
            raise InterpError(f"relu_network_step takes {name} of at least 1; found {size}.")
    if checked("relu_network_step", "noise_var", noise_var, float) < 0:
        raise InterpError(f"relu_network_step takes noise_var of at least 0; found {noise_var}.")
    return nonlinear_step(n, correlation=hidden * d / 4, energy=hidden * d * (d + 2) / 2 + noise_var * d)


def nonlinear_step(n: int, correlation: float, energy: float) -> float:
    """The best "sum" step for targets that are not linear: correlation / (energy + (n - 1) correlation).

    For x ~ N(0, I) and a law of f that rotations and reflections leave alone, one step of GD on least squares is still
    the best single layer of linear attention (Mahankali, Hashimoto and Ma 2023, theorem 3).

    Args:
        n: Context pairs.
        correlation: E‖c_f‖² with c_f = E[f(x) x | f].
        energy: E[y² ‖x‖²], noise included.

    Raises:
        InterpError: fewer than 1 pair, correlation below 0, or energy that is not above 0.

    Examples:
        >>> interp.icl.nonlinear_step(n=5, correlation=1.0, energy=4.0)
        0.125
    """
    checked("nonlinear_step", "n", n, int)
    for name, value in (("correlation", correlation), ("energy", energy)):
        checked("nonlinear_step", name, value, float)
    if n < 1 or correlation < 0 or energy <= 0:
        raise InterpError(
            "nonlinear_step takes n of at least 1, correlation of at least 0 and energy above 0; found "
            f"n={n}, correlation={correlation}, energy={energy}."
        )
    return correlation / (energy + (n - 1) * correlation)


LINE_SEARCH = torch.arange(0.001, 25, 0.1, dtype=torch.float64)
"""Mean steps tried by the released code of von Oswald et al."""


def tune_gd(tasks: Tasks, steps: int = 1, method: Literal["exact", "line_search"] = "exact") -> gd:
    """Gradient descent with the "mean" step, shared by all steps, that has the least squared error on these tasks.

    The error of many steps hangs on the few tasks with the largest eigenvalues of XᵀX: on new tasks, ten steps tuned
    on 50,000 tasks of d = N = 10 cost a tenth more than the best ten steps.

    Args:
        method: "exact", the minimiser itself; "line_search", the best of the grid in von Oswald et al.'s release,
            0.001 to 25 by 0.1, which is coarse enough to cost up to a percent of loss and too low for small inputs.

    Raises:
        InterpError: fewer than 1 step, an unknown method, prompts without a pair, or labels that are all zero.

    Examples:
        >>> tasks = interp.icl.make_regression(500, N=10, d=3, seed=1)
        >>> interp.icl.tune_gd(tasks, steps=2).steps
        2
    """
    checked("tune_gd", "steps", steps, int)
    if steps < 1:
        raise InterpError(f"{steps} steps have no step size to tune: ask for 1 or more.")
    spectrum = _Spectrum(tasks)
    if method == "line_search":
        losses = torch.stack([spectrum.loss([eta] * steps, [0.0] * steps) for eta in LINE_SEARCH / spectrum.N])
        return gd(steps, float(LINE_SEARCH[int(losses.nan_to_num(torch.inf).argmin())]))
    if method != "exact":
        raise InterpError(f"method={method!r}: choose 'exact' or 'line_search'.")
    return gd(steps, spectrum.N * _best_shared_step(spectrum, steps))


def tune_gdpp(tasks: Tasks, steps: int, shared: bool = True) -> gdpp:
    """GD++ with the step sizes and gammas that fit these tasks.

    von Oswald et al. fit both cases with Adam on new batches, clamping tokens against overflow. Here the shared pair is
    the least squares solution itself, found by a trust region method that takes back any step that raises the error and
    so needs no clamp. With a pair for each step that solution would follow the few largest eigenvalues of the given
    tasks and explode on others: those start from the shared pair and take a fixed number of small Adam steps instead.
    A shared pair for ten steps feels this too: tuned on 10,000 tasks of d = N = 10 it costs a seventh more on new ones
    than the best pair.

    Args:
        steps: Number of steps, at least 2: one step has no use for gamma.
        shared: One pair (eta, gamma), the control of a recurrent model; else a pair for each step, the control of
            untied layers. The last gamma has no effect and is then 0.

    Raises:
        InterpError: fewer than 2 steps.

    Examples:
        >>> tasks = interp.icl.make_regression(500, N=10, d=3, seed=1)
        >>> interp.icl.tune_gdpp(tasks, steps=2).steps
        2
    """
    checked("tune_gdpp", "steps", steps, int)
    if steps < 2:
        raise InterpError(f"GD++ of {steps} step is gradient descent: use tune_gd(tasks), or at least 2 steps.")
    spectrum = _Spectrum(tasks)
    width = spectrum.width  # a typical largest eigenvalue; step sizes and gammas are of order 1 in its units

    def tied(pair: Tensor) -> Tensor:
        return spectrum.residuals((pair[0] / width).expand(steps), (pair[1] / width).expand(steps))

    eta, gamma = _least_squares(tied, [_best_shared_step(spectrum, steps) * width, 0.1])
    if shared:
        return gdpp(steps, spectrum.N * eta / width, gamma / width)
    sizes = torch.tensor([eta] * steps + [gamma] * (steps - 1), dtype=torch.float64, device=spectrum.target.device)
    etas, gammas = (_adam(spectrum, sizes) / width).split([steps, steps - 1])
    return gdpp(steps, tuple((spectrum.N * etas).tolist()), (*gammas.tolist(), 0.0))


def _adam(spectrum: _Spectrum, sizes: Tensor, updates: int = 600, batch: int = 1024) -> Tensor:
    """Small steps on blocks of the tasks in turn; `sizes` are etas, then gammas but the last, times the width."""
    sizes = sizes.clone().requires_grad_()
    steps = (len(sizes) + 1) // 2
    optimizer = torch.optim.Adam([sizes], lr=0.02)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    blocks = spectrum.blocks(batch)
    for update in range(updates):
        etas, gammas = (sizes / spectrum.width).split([steps, steps - 1])
        residuals = blocks[update % len(blocks)].residuals(etas, torch.cat([gammas, gammas.new_zeros(1)]))
        optimizer.zero_grad()
        (residuals.square().mean() / 2).backward()
        torch.nn.utils.clip_grad_norm_([sizes], 1.0)  # one task near divergence must not throw the sizes off
        optimizer.step()
        decay.step()
    return sizes.detach()


class _Spectrum:
    """Tasks in the eigenbasis of XᵀX, where every step of GD and GD++ acts on each eigenvalue alone. float64."""

    def __init__(self, tasks: Tasks) -> None:
        if not tasks.y.any():
            raise InterpError("Step sizes cannot be tuned to tasks whose context has no label but 0, or none at all.")
        X, xq = tasks.X.double(), tasks.xq.double()
        y = tasks.y.double().reshape(*tasks.y.shape[:2], -1)
        self.N = X.shape[1]
        self.target = tasks.yq.double().reshape(len(X), -1)  # [B, d_y]
        self.eigenvalues, vectors = torch.linalg.eigh(X.mT @ X)  # [B, d]
        slope, query = vectors.mT @ (X.mT @ y), vectors.mT @ xq[..., None]
        self.share = slope * query  # [B, d, d_y]: what each eigenvalue adds to the prediction of one unit step
        self.width = float(self.eigenvalues[:, -1].mean())

    def residuals(self, etas: Sequence[float] | Tensor, gammas: Sequence[float] | Tensor) -> Float[Tensor, "B d_y"]:
        """Prediction minus target, for one "sum" step eta and one gamma for each step."""
        eigenvalue = self.eigenvalues
        gain, rest = torch.zeros_like(eigenvalue), torch.ones_like(eigenvalue)
        for eta, gamma in zip(etas, gammas, strict=True):
            shrink = 1 - gamma * eigenvalue
            gain = gain + eta * rest
            rest = rest * shrink.square() * (1 - eta * eigenvalue)
            eigenvalue = eigenvalue * shrink.square()
        return torch.einsum("bd,bdo->bo", gain, self.share) - self.target

    def blocks(self, size: int) -> list[_Spectrum]:
        """The same tasks in blocks of about `size`."""
        parts = []
        for chunk in range(count := max(1, len(self.target) // size)):
            part = copy(self)
            part.target, part.eigenvalues, part.share = (
                tensor.tensor_split(count)[chunk] for tensor in (self.target, self.eigenvalues, self.share)
            )
            parts.append(part)
        return parts

    def loss(self, etas: Sequence[float] | Tensor, gammas: Sequence[float] | Tensor) -> Tensor:
        return self.residuals(etas, gammas).square().sum()


def _best_shared_step(spectrum: _Spectrum, steps: int) -> float:
    """The "sum" step of least error: in closed form for one step, else bracketed by a grid and refined."""
    if steps == 1:
        unit = spectrum.share.sum(1)
        return float((unit * spectrum.target).sum() / unit.square().sum())

    def loss(eta: float) -> float:
        return float(spectrum.loss([eta] * steps, [0.0] * steps).nan_to_num(torch.inf))

    grid = torch.linspace(0, 4, 81, dtype=torch.float64)[1:] / spectrum.width
    best = int(torch.tensor([loss(float(eta)) for eta in grid]).argmin())
    if best == len(grid) - 1:
        raise InterpError("The error still falls at four times the stable step: the labels do not follow the inputs.")
    low = float(grid[best - 1]) if best else 0.0
    return float(
        scipy.optimize.minimize_scalar(
            loss, bounds=(low, float(grid[best + 1])), method="bounded", options={"xatol": 1e-10 * float(grid[-1])}
        ).x
    )


def _least_squares(residuals: Callable[[Tensor], Tensor], start: list[float]) -> list[float]:
    """Minimise the sum of squares by a trust region method; a few parameters, so derivatives are differences."""

    def values(x: np.ndarray) -> np.ndarray:
        return residuals(torch.from_numpy(x)).flatten().numpy(force=True)

    found: list[float] = scipy.optimize.least_squares(values, start, jac="3-point").x.tolist()
    return found
