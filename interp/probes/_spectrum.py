"""Singular values of matrices that are only known through products: leading ones, their sum, and their entropy.

A few steps of block Lanczos on AᵀA: one random block, one sweep (A x, AᵀA x) a step, every new block orthogonalised
against all earlier ones (`Krylov`). The small block-tridiagonal matrix T = Vᵀ AᵀA V that results is read in two ways:

* `gauss`: eigenvalues of T (Ritz values of AᵀA), the nodes of the Gauss rule of the spectral measure;
* `radau`: the same with one more block, chosen so that 0 is a node (Gauss-Radau rule). Its other nodes are the Ritz
  values of AAᵀ on the span of A V: half a step further, at no further sweep.

Leading singular values are the larger of the two, since both are lower bounds. Sums over *all* singular values are
stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017): the first block is random, so its columns are probes from
which tr f(AᵀA) is estimated. The leading pairs have converged and count exactly, which removes most of the variance.
Gauss overestimates a sum of square roots and Radau underestimates it (Golub and Meurant 1994), so the mean of the two
is given, and as its error half their distance plus the standard error over the probes.

Bases are fp32 and stored as rows; small matrices are fp64, because squaring halves the digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.probes._by_head import by_head

Tensor = torch.Tensor
GramApply = Callable[[Tensor], tuple[Tensor, Tensor]]

NEGLIGIBLE = 1e-7  # a Ritz value below this part of the largest is rounding error of fp32 sweeps


@dataclass(frozen=True)
class Spectrum:
    """What is known about the singular values of one matrix, or of several along a leading axis.

    Errors are 0 where all singular values were computed.
    """

    leading: Tensor
    """The k largest, in falling order `[..., k]`, fp64."""
    nuclear_norm: Tensor
    """Sum of all singular values `[...]`."""
    nuclear_norm_error: Tensor
    effective_rank: Tensor
    """exp of the entropy of the singular values divided by their sum `[...]` (Roy and Vetterli 2007)."""
    effective_rank_error: Tensor


def exact_spectrum(matrices: Tensor, k: int) -> Spectrum:
    """All singular values of each of `matrices [head, n, m]`, as roots of the eigenvalues of AᵀA in fp64."""

    def one(matrix: Tensor) -> Spectrum:
        wide = matrix.double()
        sigma = torch.linalg.eigvalsh(wide.mT @ wide).flip(-1).clamp_min(0).sqrt()
        nuclear, none = sigma.sum(), sigma.new_zeros(())
        return Spectrum(sigma[:k], nuclear, none, _effective_rank(nuclear, _xlogx(sigma).sum()), none)

    return _stack(by_head(one, list(matrices)))


def lanczos_spectrum(
    gram_apply: GramApply, heads: int, size: int, *, k: int, width: int, passes: int, seed: Sequence[int]
) -> Spectrum:
    """The spectra of matrices A `[head, n, size]` known through `gram_apply`: x `[head, size, width]` -> (A x, AᵀA x).

    k <= width and passes * width <= size. Each pass is one sweep over A. `seed` decides the random first block.
    Memory: passes * width * size fp32 numbers a head for the basis, and four blocks.
    """

    def begin(head: int) -> Krylov:
        draw = np.random.default_rng([*seed, head])
        return Krylov(torch.from_numpy(draw.standard_normal((width, size), np.float32)), passes)

    def sweep() -> None:  # a function, so that nothing of one sweep is still there in the next
        applied, gram = gram_apply(torch.stack([space.block for space in spaces]).mT)
        by_head(lambda step: step[0].advance(*step[1:]), list(zip(spaces, applied, gram, strict=True)))

    spaces = by_head(begin, range(heads))
    for _ in range(passes):
        sweep()
    return _stack(by_head(lambda space: space.spectrum(k), spaces))


class Krylov:
    """The block Krylov space of AᵀA from one random block, and AᵀA as seen from it."""

    def __init__(self, start: Tensor, passes: int) -> None:
        self.width, self.size = start.shape
        self.basis = start.new_empty(passes * self.width, self.size)
        """V as rows, filled block by block."""
        self.tridiagonal = start.new_zeros(len(self.basis), len(self.basis), dtype=torch.float64)
        """T = Vᵀ AᵀA V, block-tridiagonal."""
        self.outside = start.new_empty(0)
        """WᵀW for the part W of AᵀA V_last outside the space `[width, width]`, fp64; known at the end."""
        self.applied = start.new_empty(0)
        self.last = slice(0, self.width)
        self.basis[self.last] = _orthonormal(start / self.size**0.5, self.basis[:0])

    @property
    def block(self) -> Tensor:
        """The rows to which AᵀA is applied next `[width, size]`."""
        return self.basis[self.last]

    def advance(self, applied: Tensor, gram: Tensor) -> None:
        """Take in A x `[n, width]` and AᵀA x `[size, width]` of the current block x, and find the next block."""
        last, wide = self.last, applied.double()
        self.tridiagonal[last, last] = wide.mT @ wide
        if last.start:
            before = slice(last.start - self.width, last.start)
            self.tridiagonal[before, last] = self.applied.double().mT @ wide
            self.tridiagonal[last, before] = self.tridiagonal[before, last].mT
        self.applied = applied
        if last.stop < len(self.basis):
            self.last = slice(last.stop, last.stop + self.width)
            self.basis[self.last] = _orthonormal(gram.mT, self.basis[: last.stop])
        else:
            rest = _without(gram.mT, self.basis).double()
            self.outside = rest @ rest.mT

    def spectrum(self, k: int) -> Spectrum:
        """Leading singular values and sums over all of them; see the module."""
        pairs = _eigh(self.tridiagonal)
        rules = gauss(*pairs, self.width), radau(*pairs, self.outside)
        (n_high, h_high), (n_low, h_low) = (self._sums(rule) for rule in rules)
        nuclear, entropy = (n_high + n_low) / 2, (h_high + h_low) / 2
        mean = nuclear.mean(), entropy.mean()
        rank = _effective_rank(*mean)
        high, low = _effective_rank(n_high.mean(), h_high.mean()), _effective_rank(n_low.mean(), h_low.mean())
        # the effective rank's standard error to first order: its logarithm is log n - h / n
        deviation = (nuclear - mean[0]) * (1 + mean[1] / mean[0]) - (entropy - mean[1])
        return Spectrum(
            torch.maximum(rules[0].sigma, rules[1].sigma)[:k],
            mean[0],
            (n_high.mean() - n_low.mean()).abs() / 2 + _standard_error(nuclear),
            rank,
            (high - low).abs() / 2 + rank * _standard_error(deviation / mean[0]),
        )

    def _sums(self, rule: Quadrature) -> tuple[Tensor, Tensor]:
        """Σσ and Σσ log σ over the whole space, one estimate `[probe]` from each column of the first block.

        The leading nodes count once each. The probes speak for the rest of the space, in which they lie with the weight
        that those nodes leave them.
        """
        taken = 2 * self.width // 3
        left = 1 - rule.weight[:, :taken].sum(-1).mean()
        scale = (self.size - taken) / left
        terms = torch.stack([rule.sigma, _xlogx(rule.sigma)], -1)
        nuclear, entropy = (terms[:taken].sum(0) + scale * rule.weight[:, taken:] @ terms[taken:]).unbind(-1)
        return nuclear, entropy


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights of tr f(AᵀA), largest node first."""

    sigma: Tensor
    """Singular values at the nodes `[node]`."""
    weight: Tensor
    """Share of each probe column in each node `[probe, node]`."""


def gauss(values: Tensor, vectors: Tensor, width: int) -> Quadrature:
    """The Gauss rule, from the eigenpairs of T and the width of its first block."""
    return Quadrature(values.sqrt(), vectors[:width].square())


def radau(values: Tensor, vectors: Tensor, outside: Tensor) -> Quadrature:
    """The Gauss-Radau rule with a node at 0, which adds nothing to the sums of this module and is left out.

    The extended matrix [T, B; Bᵀ, Bᵀ T⁻¹ B] factors as L Lᵀ with L = [T^½; Bᵀ T^-½], so its nonzero eigenpairs come
    from LᵀL = T + T^-½ B Bᵀ T^-½. `outside` is the only nonzero block, the last, of B Bᵀ. Directions in which T may
    be nothing but rounding error are left out: T⁻¹ means nothing there, and a lower bound stays one.
    """
    width = len(outside)
    kept = values > NEGLIGIBLE * values[0]
    root, inverse_root = torch.where(kept, values, 0.0).sqrt(), torch.where(kept, values, torch.inf).rsqrt()
    last = vectors[-width:] * inverse_root
    nodes, turned = _eigh(torch.diag(root.square()) + last.mT @ outside @ last)
    first = vectors[:width] * root @ turned
    return Quadrature(nodes.sqrt(), first.square() / torch.where(nodes > 0, nodes, torch.inf))


def _effective_rank(nuclear: Tensor, sum_sigma_log_sigma: Tensor) -> Tensor:
    return torch.exp(nuclear.log() - sum_sigma_log_sigma / nuclear)


def _xlogx(x: Tensor) -> Tensor:
    product: Tensor = torch.special.xlogy(x, x)
    return product


def _standard_error(estimates: Tensor) -> Tensor:
    error: Tensor = estimates.std() / len(estimates) ** 0.5
    return error


def _orthonormal(rows: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis `[width, size]` of what `rows` add to the orthonormal `basis`.

    Where they add nothing (A has a lower rank than the space), rounding errors supply arbitrary new directions. These
    are not orthogonal to the basis after the usual two rounds, so rounds go on until one finds little left to remove.
    """
    for round_ in range(5):
        rows = _without(rows, basis)
        exact = rows.double() if round_ == 0 else rows  # only at first can they be nearly dependent
        values, vectors = torch.linalg.eigh(exact @ exact.mT)
        root = values.maximum(values[-1:] * 1e-15).clamp_min(1e-30).rsqrt()
        rows = (vectors * root).to(rows.dtype).mT @ rows
        if (values - 1).abs().max() < 0.5:
            break
    return rows


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    return torch.addmm(rows, rows @ basis.mT, basis, alpha=-1)


def _eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenpairs of a positive semidefinite matrix, largest first."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(-1).clamp_min(0), vectors.flip(-1)


def _stack(spectra: list[Spectrum]) -> Spectrum:
    return Spectrum(*(torch.stack([getattr(s, name) for s in spectra]) for name in Spectrum.__dataclass_fields__))
