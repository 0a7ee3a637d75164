"""Of intervals that claim 95 %, 95 in 100 hold the truth, also where items come in clusters."""

from __future__ import annotations

import numpy as np
import pytest

from interp.studies.statistics.clusters import BOOTSTRAP, ROBUST, clustered_means
from tests.studies.statistics.clustered_nulls import differences, sizes

CELLS = [(c, icc, kind) for c in (8, 20, 50, 200) for icc in (0.0, 0.3, 0.8) for kind in ("binary", "continuous")]
FEW = [(c, icc, kind) for c in (3, 5, 7) for icc in (0.0, 0.8) for kind in ("continuous",)]


def coverage(clusters: int, icc: float, kind: str, repeats: int, layouts: int, per_cluster: str = "1-10") -> float:
    """Per cent of intervals that hold 0, which is true; of those that exist."""
    rng = np.random.default_rng([clusters, int(10 * icc), len(kind), repeats])
    held = []
    for seed in range(layouts):
        number = np.repeat(np.arange(clusters), sizes(clusters, rng, per_cluster))
        values = differences(kind, number, icc, repeats // layouts, rng)
        found = clustered_means(values, number, seed=seed, resamples=1_999)
        limits = np.array([one.interval() for one in found if one.se > 0])
        held.append((limits[:, 0] <= 0) & (limits[:, 1] >= 0))
    return 100 * float(np.concatenate(held).mean())


@pytest.mark.parametrize(("clusters", "icc", "kind"), CELLS + FEW)
def test_coverage_in_short(clusters, icc, kind):
    """1,000 studies a cell: four standard errors of a share of 95 % are 2.8."""
    assert coverage(clusters, icc, kind, 1_000, 5) == pytest.approx(95, abs=2 + 2.8)


@pytest.mark.slow
@pytest.mark.parametrize("per_cluster", ["1-10", "10"])
@pytest.mark.parametrize(("clusters", "icc", "kind"), CELLS)
def test_coverage(clusters, icc, kind, per_cluster):
    """10,000 studies a cell: two standard errors are 0.4."""
    assert coverage(clusters, icc, kind, 10_000, 40, per_cluster) == pytest.approx(95, abs=2 + 0.4)


def test_items_taken_as_independent_are_wrong():
    """What clusters are for: 50 clusters of ten with intraclass correlation 0.3, each item drawn for itself."""
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(50), 10)
    values = differences("continuous", number, 0.3, 500, rng)
    alone = clustered_means(values, np.arange(500), seed=0, resamples=999)
    told = clustered_means(values, number, seed=0, resamples=999)
    false = [100 * np.mean([one.p() < 0.05 for one in found]) for found in (alone, told)]
    assert false[0] > 30, "an item bootstrap rejects a true null far more often than in 5 of 100 studies"
    assert false[1] < 9


def test_which_interval():
    rng = np.random.default_rng(0)
    hows = {}
    for clusters in (2, 7, 8, 50):
        number = np.repeat(np.arange(clusters), 4)
        hows[clusters] = clustered_means(differences("continuous", number, 0.3, 1, rng), number)[0].how
    assert hows == {2: ROBUST, 7: ROBUST, 8: BOOTSTRAP, 50: BOOTSTRAP}
    lopsided = np.repeat(np.arange(10), [200, *[1] * 9])  # ten clusters in name
    assert clustered_means(rng.standard_normal((209, 1)), lopsided)[0].how == ROBUST
