"""Singular values of matrices that are only known through products: leading ones, their sum, and their entropy.

`project` runs a few steps of block Lanczos on AᵀA: one random block, one sweep A x, AᵀA x a step, every new block
orthogonalised against all earlier ones. The resulting small block-tridiagonal matrix T = Vᵀ AᵀA V is read in two ways,

* `gauss`: the eigenvalues of T (Ritz values of AᵀA), the nodes of the Gauss rule of the spectral measure;
* `radau`: the same with one more block whose free part is chosen so that 0 is a node (Gauss-Radau rule). Its other nodes
  are the Ritz values of AAᵀ on the span of A V: half a step further, at no further sweep.

Leading singular values are the larger of the two (both are lower bounds). Sums over *all* singular values follow
Ubaru, Chen and Saad 2017 (stochastic Lanczos quadrature): the first block is random, so what the rest of the space
contributes to tr f(AᵀA) is estimated from it. The leading pairs have converged and are taken exactly, which removes most
of the variance. Gauss overestimates a sum of square roots and Radau underestimates it (Golub and Meurant 1994), so the
mean of the two is reported with half their distance, plus the standard error over the probe columns, as its error.

All heads are computed together: arrays are `[..., n]` with heads in front. Bases are stored as rows, in fp32;
small matrices are fp64, because squaring halves the digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Tensor = torch.Tensor
GramApply = Callable[[Tensor], tuple[Tensor, Tensor]]

NEGLIGIBLE = 1e-7  # a Ritz value below this part of the largest is rounding error of fp32 sweeps
ROWS = 1024  # rows converted to fp64 at a time


@dataclass(frozen=True)
class Projection:
    """AᵀA seen from the block Krylov space of a random block."""

    tridiagonal: Tensor
    """T = Vᵀ AᵀA V `[..., blocks * width, blocks * width]`, fp64, block-tridiagonal."""
    outside: Tensor
    """WᵀW `[..., width, width]`, fp64, for the part W of AᵀA V_last that lies outside the space."""
    width: int
    size: int
    """Columns of A: the dimension of the whole space."""


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights for tr f(AᵀA), largest node first."""

    sigma: Tensor
    """Singular values at the nodes `[..., node]`."""
    weight: Tensor
    """Share of each probe column in each node `[..., column, node]`; a column's weights add up to 1."""


@dataclass(frozen=True)
class Spectrum:
    """What is known about the singular values of each head; errors are 0 where they were all computed."""

    leading: Tensor
    """`[..., k]`, largest first."""
    nuclear_norm: Tensor
    """Sum of all singular values `[...]`."""
    nuclear_norm_error: Tensor
    effective_rank: Tensor
    """exp of the entropy of the singular values divided by their sum `[...]` (Roy and Vetterli 2007)."""
    effective_rank_error: Tensor


def exact_spectrum(matrices: Tensor, k: int) -> Spectrum:
    """All singular values of `matrices [..., n, m]`, one matrix at a time so that only one is held in fp64."""
    flat = matrices.flatten(0, -3)
    wide = (m.double() for m in flat)
    squares = torch.stack([torch.linalg.eigvalsh(m.mT @ m) for m in wide])
    sigma = squares.flip(-1).clamp_min(0).sqrt().unflatten(0, matrices.shape[:-2])
    nuclear = sigma.sum(-1)
    none = torch.zeros_like(nuclear)
    return Spectrum(sigma[..., :k], nuclear, none, _effective_rank(nuclear, _xlogx(sigma).sum(-1)), none)


def lanczos_spectrum(gram_apply: GramApply, start: Tensor, k: int, passes: int) -> Spectrum:
    """The spectrum through `passes` sweeps of `gram_apply`: x `[..., size, width]` -> (A x, AᵀA x), from a random `start`."""
    projection = project(gram_apply, start, passes)
    lower, upper = radau(projection), gauss(projection)
    converged = 2 * projection.width // 3
    sums = [_trace(rule, projection.size, converged) for rule in (lower, upper)]
    (low, low_error), (high, high_error) = ((_measures(*s), _standard_errors(*s)) for s in sums)
    nuclear, entropy = ((sums[0][i].mean(-1) + sums[1][i].mean(-1)) / 2 for i in (0, 1))
    bracket = [(high[i] - low[i]).abs() / 2 for i in (0, 1)]
    spread = [(low_error[i] + high_error[i]) / 2 for i in (0, 1)]
    return Spectrum(
        torch.maximum(lower.sigma, upper.sigma)[..., :k],
        nuclear,
        bracket[0] + spread[0],
        _effective_rank(nuclear, entropy),
        bracket[1] + spread[1],
    )


def project(gram_apply: GramApply, start: Tensor, passes: int) -> Projection:
    """Block Lanczos with full reorthogonalisation from `start [..., size, width]`.

    Memory: passes * size * width fp32 numbers a head for the basis, and about five blocks more.
    """
    size, width = start.shape[-2:]
    basis = start.new_empty(*start.shape[:-2], passes * width, size)
    small = start.new_zeros(*start.shape[:-2], passes * width, passes * width, dtype=torch.float64)
    applied = None
    block = _orthonormal(start.mT, basis[..., :0, :])
    for step in range(passes):
        here = slice(step * width, (step + 1) * width)
        before = slice(here.start - width, here.start)
        basis[..., here, :] = block
        previous, (applied, gram) = applied, gram_apply(block.mT)
        small[..., here, here] = _inner(applied, applied)
        if previous is not None:
            small[..., before, here] = _inner(previous, applied)
            small[..., here, before] = small[..., before, here].mT
        if step < passes - 1:
            block = _orthonormal(gram.mT, basis[..., : here.stop, :])
    rest = _without(_without(gram.mT, basis), basis)
    return Projection(small, _inner(rest.mT, rest.mT), width, size)


def gauss(projection: Projection) -> Quadrature:
    """The Gauss rule: eigenpairs of T."""
    values, vectors = _eigh(projection.tridiagonal)
    return Quadrature(values.sqrt(), vectors[..., : projection.width, :].square())


def radau(projection: Projection) -> Quadrature:
    """The Gauss-Radau rule with a node at 0, which is left out here because it adds nothing to the sums of this module.

    The extended matrix [T, B; Bᵀ, Bᵀ T⁻¹ B] factors as L Lᵀ with L = [T^½; Bᵀ T^-½], so its nonzero eigenpairs are those
    of LᵀL = T + T^-½ B Bᵀ T^-½. Directions in which T is rounding error are cut out.
    """
    values, vectors = _eigh(projection.tridiagonal)
    width = projection.width
    kept = values > NEGLIGIBLE * values[..., :1]
    values, inverse_root = torch.where(kept, values, 0.0), torch.where(kept, values, torch.inf).rsqrt()
    last = vectors[..., -width:, :]
    coupling = last.mT @ projection.outside @ last * inverse_root[..., :, None] * inverse_root[..., None, :]
    nodes, turned = _eigh(torch.diag_embed(values) + coupling)
    first = vectors[..., :width, :] * values.sqrt()[..., None, :] @ turned
    weight = first.square() / torch.where(nodes > 0, nodes, torch.inf)[..., None, :]
    return Quadrature(nodes.sqrt(), weight)


def _trace(rule: Quadrature, size: int, converged: int) -> tuple[Tensor, Tensor]:
    """Σσ and Σσ log σ over the whole space, one estimate `[..., column]` from each probe column; their mean is the estimate.

    The first `converged` nodes count once each; the columns speak for the rest of the space, in which they lie with the
    weight that those nodes leave them.
    """
    rest = rule.weight[..., converged:]
    scale = (size - converged) / (1 - rule.weight[..., :converged].sum(-1).mean(-1, keepdim=True))
    estimates = []
    for terms in (rule.sigma, _xlogx(rule.sigma)):
        taken = terms[..., :converged].sum(-1, keepdim=True)
        estimates.append(taken + scale * (rest @ terms[..., converged:, None])[..., 0])
    return estimates[0], estimates[1]


def _measures(nuclear: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Nuclear norm and effective rank `[...]` from estimates by column."""
    return nuclear.mean(-1), _effective_rank(nuclear.mean(-1), entropy.mean(-1))


def _standard_errors(nuclear: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Standard errors of `_measures` over the columns; the effective rank's to first order."""
    columns = nuclear.shape[-1]
    n, h = nuclear.mean(-1, keepdim=True), entropy.mean(-1, keepdim=True)
    log_rank = (nuclear - n) * (1 / n + h / n.square()) - (entropy - h) / n
    rank = _effective_rank(n[..., 0], h[..., 0])
    return nuclear.std(-1) / columns**0.5, rank * log_rank.std(-1) / columns**0.5


def _effective_rank(nuclear: Tensor, sum_sigma_log_sigma: Tensor) -> Tensor:
    return torch.exp(nuclear.log() - sum_sigma_log_sigma / nuclear)


def _xlogx(x: Tensor) -> Tensor:
    return torch.special.xlogy(x, x)


def _orthonormal(rows: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis `[..., width, size]` of what `rows` add to the orthonormal `basis`.

    Where they add nothing (A has a lower rank than the space), rounding errors supply arbitrary new directions. These
    are not orthogonal to the basis after the usual two rounds, so rounds go on until they are.
    """
    for round_ in range(5):
        overlap = rows @ basis.mT
        if round_ >= 2 and (overlap.numel() == 0 or overlap.abs().max() < 1e-5):
            break
        rows = rows - overlap @ basis
        values, vectors = torch.linalg.eigh(_inner(rows.mT, rows.mT))
        root = values.maximum(values[..., -1:] * 1e-15).clamp_min(1e-30).rsqrt()
        rows = (vectors * root[..., None, :]).to(rows.dtype).mT @ rows
    return rows


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    return rows - (rows @ basis.mT) @ basis


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """xᵀ y in fp64 for tall x and y `[..., size, width]`."""
    pairs = zip(x.split(ROWS, -2), y.split(ROWS, -2), strict=True)
    return sum(a.double().mT @ b.double() for a, b in pairs)  # type: ignore[return-value]


def _eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenpairs of a positive semidefinite matrix, largest first."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(-1).clamp_min(0), vectors.flip(-1)
