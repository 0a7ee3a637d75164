"""D2O's layer budgets: formulas by hand, limits, and what must hold of any densities."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.interventions.policies._layer_budgets import LEAST, density, head_variance, layer_shares

METRICS = ["code_minmax", "paper_raw", "log", "uniform"]
quick = settings(max_examples=60, deadline=None)
several = st.lists(st.floats(0, 5), min_size=1, max_size=40)


@quick
@given(densities=several, budget=st.floats(0.02, 0.2))
def test_shares_are_the_budget_in_the_mean(densities: list[float], budget: float) -> None:
    """Σ_l w_l = 1, wherever no share hits a bound."""
    shares = layer_shares(densities, budget)
    if min(shares) > LEAST and max(shares) < 1:
        assert math.isclose(sum(shares) / len(shares), budget, rel_tol=1e-9)
    total = sum(math.exp(-f) for f in densities)
    for share, own in zip(shares, densities, strict=True):
        wanted = budget * len(densities) * math.exp(-own) / total
        assert math.isclose(share, min(max(wanted, 0.01), 1.0), rel_tol=1e-9)


@quick
@given(value=st.floats(0, 300), layers=st.integers(1, 40), budget=st.floats(0.02, 0.98))
def test_equal_densities_get_equal_shares(value: float, layers: int, budget: float) -> None:
    assert layer_shares([value] * layers, budget) == pytest.approx([budget] * layers, rel=1e-9)


@quick
@given(densities=several, budget=st.floats(0.02, 0.98))
def test_denser_layers_never_get_less(densities: list[float], budget: float) -> None:
    shares = layer_shares(densities, budget)
    by_density = [share for _, share in sorted(zip(densities, shares, strict=True), key=lambda pair: pair[0])]
    assert all(a >= b for a, b in pairwise(by_density))


def test_shares_stay_within_their_bounds_and_are_not_made_up_for() -> None:
    """One dense layer of ten would get 10 * 0.2 = 2 times the prompt, the others next to nothing."""
    shares = layer_shares([0.0, *[100.0] * 9], 0.2)
    assert shares == [1.0, *[0.01] * 9]


def test_large_densities_do_not_underflow() -> None:
    """exp(-5000) is 0 in any precision, and 0/0 no budget."""
    assert layer_shares([5000.0, 5001.0], 0.2) == pytest.approx([0.4 / (1 + math.exp(-1)), 0.4 / (1 + math.e)])


@quick
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 3), heads=st.integers(1, 6), n=st.integers(2, 30))
def test_variance_is_the_sample_variance_of_real_tokens(seed: int, batch: int, heads: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mass = 5 * torch.rand(batch, heads, n, generator=generator)
    padding = torch.randint(0, n - 1, (batch,), generator=generator)
    for starts in (None, padding):
        found = head_variance(mass, starts)
        for h in range(heads):
            rows = [mass[b, h, 0 if starts is None else int(starts[b]) :].tolist() for b in range(batch)]
            wanted = statistics.fmean(map(statistics.variance, rows))
            assert math.isclose(float(found[h]), wanted, rel_tol=1e-4, abs_tol=1e-6)


def test_a_text_of_one_token_has_variance_zero() -> None:
    """Its sample variance is 0/0, which would make budgets of the whole batch NaN."""
    mass = torch.tensor([[[1.0, 2.0, 3.0]], [[7.0, 8.0, 1.0]]])
    assert head_variance(mass, torch.tensor([0, 2])).item() == 0.5
    assert head_variance(mass[:, :, :1]).item() == 0


def test_variance_of_half_precision_sums_is_taken_in_fp32() -> None:
    """Squares of 9000 are beyond fp16; unbiased variance of 9000 and 7000 zeros."""
    mass = torch.zeros(1, 1, 7001, dtype=torch.float16)
    mass[..., 0] = 9000
    assert head_variance(mass).item() == pytest.approx(9000**2 / 7001, rel=1e-4)


@quick
@given(values=st.lists(st.floats(0, 1000), min_size=1, max_size=16), tokens=st.integers(1000, 4000))
def test_density_by_hand(values: list[float], tokens: int) -> None:
    variance = torch.tensor(values, dtype=torch.float64)
    least, most = min(values), max(values)
    wanted: dict[Any, float] = {
        "uniform": 0.0,
        "paper_raw": statistics.fmean(values),
        "log": statistics.fmean(math.log(1 + v) / math.log(1 + tokens) for v in values),
        "code_minmax": statistics.fmean((v - least) / (most - least + 1e-6) for v in values),
    }
    for metric, density_by_hand in wanted.items():
        assert density(variance, tokens, metric) == pytest.approx(density_by_hand, rel=1e-5, abs=1e-9)
    assert 0 <= density(variance, tokens, "log") <= 1
    assert density(variance, tokens, "code_minmax") <= 1 - 1 / len(values) + 1e-9


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("heads", [1, 8])
def test_columns_that_are_all_alike_have_density_zero(metric: Any, heads: int) -> None:
    """The release takes density 0 of the first layer for "not computed yet" and never compresses."""
    variance = head_variance(torch.ones(2, heads, 20))
    assert density(variance, 20, metric) == 0.0
    assert layer_shares([density(variance, 20, metric)] * 3, 0.2) == pytest.approx([0.2] * 3)


def test_the_released_metric_forgets_the_scale_and_the_others_do_not() -> None:
    """The same heads with ten times the variance."""
    variance = torch.tensor([1.0, 2.0, 5.0, 9.0])
    assert density(10 * variance, 100, "code_minmax") == pytest.approx(density(variance, 100, "code_minmax"), rel=1e-5)
    for metric in ("paper_raw", "log"):
        assert density(10 * variance, 100, metric) > 1.2 * density(variance, 100, metric)  # type: ignore[arg-type]


def test_one_token_that_gets_everything_has_log_density_one() -> None:
    """Its column sums are (S, 0, ..., 0), whose sample variance is S."""
    mass = torch.zeros(1, 4, 50)
    mass[..., 0] = 50
    assert density(head_variance(mass), 50, "log") == pytest.approx(1.0, rel=1e-5)
