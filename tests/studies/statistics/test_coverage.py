"""Of intervals that claim 95 %, 95 in 100 hold the truth, also where items come in clusters."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.clustered_nulls import coverage, differences
from interp.studies.statistics.clusters import BOOTSTRAP, ROBUST, clustered_means

CELLS = [(c, icc, kind) for c in (8, 20, 50, 200) for icc in (0.0, 0.3, 0.8) for kind in ("binary", "continuous")]
SHORT = [cell for cell in CELLS if cell[1] != 0.3]
FEW = [(c, icc, "continuous") for c in (3, 5) for icc in (0.0, 0.8)]
EDGE = [(c, 0.8, kind) for c in (11, 12) for kind in ("binary", "continuous")]


@pytest.mark.parametrize(("clusters", "icc", "kind"), SHORT + FEW + EDGE)
def test_coverage_in_short(clusters, icc, kind):
    """800 studies a cell: four standard errors of a share of 95 % are 3.1."""
    assert coverage(clusters, icc, kind, 800, 4, resamples=999) == pytest.approx(95, abs=2 + 3.1)


@pytest.mark.slow
@pytest.mark.parametrize("per_cluster", ["1-10", "10"])
@pytest.mark.parametrize(("clusters", "icc", "kind"), CELLS)
def test_coverage(clusters, icc, kind, per_cluster):
    """4,000 studies a cell: two standard errors are 0.7."""
    assert coverage(clusters, icc, kind, 4_000, 40, per_cluster=per_cluster) == pytest.approx(95, abs=2 + 0.7)


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
    for clusters in (2, 11, 12, 50):
        number = np.repeat(np.arange(clusters), 4)
        hows[clusters] = clustered_means(differences("continuous", number, 0.3, 1, rng), number)[0].how
    assert hows == {2: ROBUST, 11: ROBUST, 12: BOOTSTRAP, 50: BOOTSTRAP}
    lopsided = np.repeat(np.arange(20), [200, *[1] * 19])  # twenty clusters in name
    assert clustered_means(rng.standard_normal((219, 1)), lopsided)[0].how == ROBUST
