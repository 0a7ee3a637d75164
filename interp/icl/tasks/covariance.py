"""Covariances of inputs and of weights: what counts as one, and its square root."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.errors import InterpError

Covariance = float | Tensor
"""A number stands for that multiple of the identity, a tensor is the [d, d] matrix."""


def checked_covariance(cov: Covariance, d: int) -> Tensor:
    """`cov` as a [d, d] float64 tensor on the CPU; a number stays a scalar.

    Raises:
        InterpError: not a square matrix of size d, not symmetric, or not positive semidefinite.
    """
    matrix = torch.as_tensor(cov, dtype=torch.float64).cpu()
    if matrix.ndim and matrix.shape != (d, d):
        raise InterpError(f"A covariance of {d} inputs is a number or [{d}, {d}]; this one is {list(matrix.shape)}.")
    square = matrix if matrix.ndim else matrix.reshape(1, 1)
    values = torch.linalg.eigvalsh(square)
    if not torch.allclose(square, square.mT) or values.min() < -1e-10 * values.abs().max():
        raise InterpError("A covariance is symmetric and has no negative eigenvalues; this one is not: use S @ S.T.")
    return matrix


def covariance_root(cov: Covariance, d: int) -> Tensor:
    """A matrix R with R Rᵀ = cov, float64 on the CPU; a scalar for a scalar. Raises as `checked_covariance`."""
    matrix = checked_covariance(cov, d)
    if matrix.ndim == 0:
        return matrix.sqrt()
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root
