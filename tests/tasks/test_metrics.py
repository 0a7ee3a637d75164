"""Ratios of sums and their intervals: known formulas, known numbers, and coverage counted on data that is made."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from interp.tasks.metrics import Metric, estimate, wilson

SHARE = Metric("share", lambda t: t["right"])
MEAN = Metric("mean", lambda t: t["right"], share=False)
Z = float(stats.norm.ppf(0.975))


def table(right: list[float], cluster: list[int] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"right": right, "cluster": cluster if cluster is not None else range(len(right))})


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 5), (3, 7), (50, 100), (100, 100)])
def test_single_items_have_wilsons_interval(k: int, n: int) -> None:
    found = estimate(SHARE, table([1.0] * k + [0.0] * (n - k)))
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert found.value == k / n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.effective == n


def test_clusters_that_agree_count_as_one_item() -> None:
    """Ten clusters of five equal answers tell what ten items would, less what so few clusters cost."""
    right = [float(c % 2) for c in range(10) for _ in range(5)]
    found = estimate(SHARE, table(right, [c for c in range(10) for _ in range(5)]))
    variance = 10 / 9 * 10 * 2.5**2 / 50**2  # by hand: each cluster is 2.5 from what it would have at a half
    effective = 0.25 / variance * (Z / stats.t.ppf(0.975, 9)) ** 2
    assert found.effective == pytest.approx(effective)
    assert found.effective < 10
    assert (found.low, found.high) == pytest.approx(wilson(0.5, effective, Z))


def test_a_ratio_of_counts_by_hand() -> None:
    """Precision 3/4: of four answers "yes" in three clusters three are hits."""
    metric = Metric("precision", lambda t: t["hit"], lambda t: t["yes"])
    rows = pd.DataFrame({"hit": [1.0, 1, 0, 1, 0], "yes": [1.0, 1, 1, 1, 0], "cluster": list("aabcc")})
    found = estimate(metric, rows)
    left = np.array([2 - 0.75 * 2, 0 - 0.75, 1 - 0.75])
    variance = 3 / 2 * (left**2).sum() / 16
    effective = 0.75 * 0.25 / variance * (Z / stats.t.ppf(0.975, 2)) ** 2
    assert found.value == 0.75
    assert found.effective == pytest.approx(effective)


def test_means_have_students_interval() -> None:
    values = [1.0, 4.0, 2.5, 7.0]
    found = estimate(MEAN, table(values))
    error = np.std(values, ddof=1) / 2
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), error))


def test_what_cannot_be_said_is_nan() -> None:
    assert np.isnan(estimate(Metric("none", lambda t: t["right"], lambda t: 0 * t["right"]), table([1.0, 0.0])).value)
    one = estimate(SHARE, table([1.0, 0.0], [0, 0]))
    assert one.value == 0.5
    assert np.isnan(one.low)
    assert np.isnan(one.high)
    assert np.isnan(estimate(MEAN, table([1.0, np.nan])).value)


def test_all_right_in_few_clusters_says_little() -> None:
    found = estimate(SHARE, table([1.0] * 30, [n // 10 for n in range(30)]))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(wilson(1.0, 3, Z)[0])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=40))
def test_limits_are_shares_around_the_value(rows: list[tuple[int, int]]) -> None:
    found = estimate(SHARE, table([float(right) for right, _ in rows], [cluster for _, cluster in rows]))
    assert 0 <= found.value <= 1
    if len({cluster for _, cluster in rows}) > 1:
        assert 0 <= found.low <= found.value + 1e-12
        assert found.value - 1e-12 <= found.high <= 1
        assert 0 < found.effective <= len(rows)


@pytest.mark.parametrize(
    ("share", "clusters", "size", "spread", "expected"),
    [(0.5, 50, 10, 2.0, 0.95), (0.85, 40, 6, 0.3, 0.95), (0.9, 60, 1, 9, 0.95), (0.95, 30, 12, 0.5, 0.88)],
)
def test_intervals_cover_what_they_should(
    share: float, clusters: int, size: int, spread: float, expected: float
) -> None:
    """Each cluster has a share of its own (beta; the smaller `spread`, the more they differ). Of 2,000 draws a coverage
    of 95 % has a standard error of half a point."""
    draw = np.random.default_rng(0)
    owner = np.repeat(np.arange(clusters), size)
    covered = 0
    for _ in range(2000):
        shares = draw.beta(share * spread, (1 - share) * spread, clusters) if size > 1 else np.full(clusters, share)
        found = estimate(SHARE, table((draw.random(clusters * size) < shares[owner]).astype(float), owner))
        covered += found.low <= share <= found.high
    assert covered / 2000 == pytest.approx(expected, abs=0.02)
