"""Shares and their intervals, where items come in clusters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.clustered_nulls import alike, sizes
from interp.errors import InterpError
from interp.studies import statistics
from interp.studies.statistics.wilson import wilson


def test_independent_items_have_wilsons_interval():
    rng = np.random.default_rng(0)
    for _ in range(20):
        n, hits = 200, int(rng.integers(0, 201))
        values = rng.permutation(np.repeat([1.0, 0.0], [hits, n - hits]))
        low, high, effective = wilson(values, np.arange(n))
        exact = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert effective == pytest.approx(n, rel=0.03)
        assert (low, high) == pytest.approx(tuple(exact), abs=0.003)


def test_nothing_right_still_has_an_upper_limit():
    scores = pd.DataFrame({"item": range(40), "cluster": np.repeat(range(10), 4), "none": 0, "all": True})
    table = statistics.proportions(scores).set_index("method")
    assert table["low"]["none"] == 0
    assert table["high"]["none"] == pytest.approx(stats.binomtest(0, 10).proportion_ci(method="wilson").high)
    assert table["low"]["all"] == pytest.approx(1 - table["high"]["none"])
    assert "0 of 40 items right, 0.0%" in table["sentence"]["none"]


def test_items_that_are_all_alike_in_their_cluster_count_once():
    rng = np.random.default_rng(0)
    once = (rng.random(60) < 0.5).astype(float)
    fours = wilson(np.repeat(once, 4), np.repeat(np.arange(60), 4))
    assert fours == pytest.approx(wilson(once, np.arange(60)), rel=0.06)  # the design effect is an estimate
    assert fours[2] < 60


def coverage(share: float, clusters: int, icc: float, repeats: int) -> float:
    rng = np.random.default_rng([clusters, int(100 * share), int(10 * icc)])
    number = np.repeat(np.arange(clusters), sizes(clusters, rng))
    values = alike(lambda shape: (rng.random(shape) < share) * 1.0, number, icc, repeats, rng)
    limits = np.array([wilson(column, number)[:2] for column in values.T])
    return 100 * float(((limits[:, 0] <= share) & (share <= limits[:, 1])).mean())


@pytest.mark.parametrize("share", [0.5, 0.05])
@pytest.mark.parametrize(("clusters", "icc"), [(8, 0.8), (20, 0.3), (50, 0.0), (50, 0.8), (200, 0.3)])
def test_coverage_in_short(share, clusters, icc):
    """At least 95 % up to 2 and four standard errors; it errs to the wide side where few clusters have a hit."""
    assert coverage(share, clusters, icc, 300) >= 95 - 2 - 5


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.2, 0.05, 0.02])
@pytest.mark.parametrize("clusters", [8, 20, 50, 200])
@pytest.mark.parametrize("icc", [0.0, 0.3, 0.8])
def test_coverage(share, clusters, icc):
    assert coverage(share, clusters, icc, 4_000) >= 95 - 2 - 0.7


def test_a_plain_interval_is_wrong():
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(50), 10)
    values = alike(lambda shape: (rng.random(shape) < 0.5) * 1.0, number, 0.5, 300, rng)
    plain = [stats.binomtest(int(v.sum()), 500).proportion_ci(method="wilson") for v in values.T]
    assert np.mean([low <= 0.5 <= high for low, high in plain]) < 0.75


def test_errors():
    scores = pd.DataFrame({"item": range(4), "cluster": [0, 0, 1, 1], "some": [0, 1, 0.5, 1]})
    with pytest.raises(InterpError, match="besides 0 and 1"):
        statistics.proportions(scores)
    with pytest.raises(InterpError, match="two clusters"):
        statistics.proportions(scores.assign(some=1, cluster=0))


def test_missing_scores_are_said():
    scores = pd.DataFrame({"item": range(4), "cluster": [0, 0, 1, 1], "some": [0, 1, np.nan, 1]})
    assert "1 without a score left out" in statistics.proportions(scores)["sentence"][0]
