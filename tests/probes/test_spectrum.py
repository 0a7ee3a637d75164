"""Block Lanczos against all singular values."""

from __future__ import annotations

import pytest
import torch

from interp.probes._spectrum import Spectrum, exact_spectrum, lanczos_spectrum
from tests.probes.events import lifelike_event, written_out


def exactly(matrices: torch.Tensor) -> Spectrum:
    """From torch's SVD in fp64, which shares no step with either implementation."""
    sigma = torch.linalg.svdvals(matrices.double())
    share = sigma / sigma.sum(-1, keepdim=True)
    none = torch.zeros(len(matrices))
    return Spectrum(sigma, sigma.sum(-1), none, torch.exp(-torch.special.xlogy(share, share).sum(-1)), none)


def by_products(matrices: torch.Tensor, k: int, width: int, passes: int, seed: int = 0) -> tuple[Spectrum, int]:
    sweeps = 0

    def gram_apply(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal sweeps
        sweeps += 1
        return matrices @ x, matrices.mT @ (matrices @ x)

    heads, _, size = matrices.shape
    return lanczos_spectrum(gram_apply, heads, size, k=k, width=width, passes=passes, seed=(seed,)), sweeps


def within(estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (estimate / truth - 1).abs()


@pytest.fixture(scope="module")
def patterns() -> torch.Tensor:
    return written_out(lifelike_event(600, heads=6)).float()


@pytest.fixture(scope="module")
def truth(patterns: torch.Tensor) -> Spectrum:
    return exactly(patterns)


def test_all_singular_values_of_short_patterns(patterns: torch.Tensor) -> None:
    short = torch.tril(patterns[:, :90, :90])
    known, found = exactly(short), exact_spectrum(short, 32)
    torch.testing.assert_close(found.leading, known.leading[:, :32], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.nuclear_norm, known.nuclear_norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.effective_rank, known.effective_rank, rtol=1e-6, atol=0)
    assert not found.nuclear_norm_error.any()
    assert not found.effective_rank_error.any()


def test_leading_singular_values_are_within_one_percent(patterns: torch.Tensor, truth: Spectrum) -> None:
    found, sweeps = by_products(patterns, 32, width=48, passes=5)
    known = truth.leading[:, :32]
    matters = known >= 1e-3 * known[:, :1]
    assert sweeps == 5, "one sweep a pass, and none for the sums"
    assert (within(found.leading, known) * matters).max() < 0.01


def test_sums_over_all_singular_values_and_their_errors(patterns: torch.Tensor, truth: Spectrum) -> None:
    assert truth.effective_rank.min() < 2, "one pattern has nearly rank one"
    assert truth.effective_rank.max() > 400, "and one nearly full rank"
    for seed in range(3):
        found, _ = by_products(patterns, 32, width=48, passes=5, seed=seed)
        assert within(found.nuclear_norm, truth.nuclear_norm).max() < 0.02
        assert within(found.effective_rank, truth.effective_rank).max() < 0.15
        assert ((found.nuclear_norm - truth.nuclear_norm).abs() <= found.nuclear_norm_error).all()
        assert ((found.effective_rank - truth.effective_rank).abs() <= found.effective_rank_error).all()


def test_errors_shrink_with_more_sweeps(patterns: torch.Tensor) -> None:
    resolved = patterns[1:]  # the first one's small singular values are below fp32's rounding errors from the start
    few, many = (by_products(resolved, 32, width=48, passes=passes)[0] for passes in (3, 6))
    assert (many.nuclear_norm_error < 0.7 * few.nuclear_norm_error).all()
    assert (many.effective_rank_error < 0.7 * few.effective_rank_error).all()


def test_a_space_as_large_as_the_matrix_gives_all_leading_values(patterns: torch.Tensor) -> None:
    small = patterns[:, :144, :144]
    known, (found, _) = exactly(small), by_products(small, 32, width=48, passes=3)
    matters = known.leading[:, :32] >= 1e-3 * known.leading[:, :1]
    assert (within(found.leading, known.leading[:, :32]) * matters).max() < 1e-3
    assert within(found.nuclear_norm, known.nuclear_norm).max() < 0.03  # the probes' spread remains


def test_rank_below_the_width_does_not_break_it() -> None:
    """A pattern whose rows are all alike has one singular value; every later block is rounding error."""
    tokens = 400
    row = torch.rand(3, 1, tokens, generator=torch.Generator().manual_seed(1)).softmax(-1)
    alike = row.expand(-1, tokens, -1).contiguous()
    found, _ = by_products(alike, 32, width=48, passes=5)
    torch.testing.assert_close(found.leading[:, 0], exactly(alike).leading[:, 0], rtol=1e-5, atol=0)
    assert (found.leading[:, 1] < 1e-3 * found.leading[:, 0]).all()
    torch.testing.assert_close(found.effective_rank, torch.ones(3).double(), rtol=0.1, atol=0)


def test_the_seed_decides(patterns: torch.Tensor) -> None:
    one, again, other = (by_products(patterns[:2], 8, 16, 3, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one.nuclear_norm, again.nuclear_norm)
    assert not torch.equal(one.nuclear_norm, other.nuclear_norm)
