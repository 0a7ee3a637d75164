"""The minimum detectable effect is found as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from benchmarks.clustered_nulls import differences, sizes
from interp.errors import InterpError
from interp.studies import statistics
from interp.studies.statistics.clusters import clustered_means


@pytest.mark.parametrize("power", [0.5, 0.8])
@pytest.mark.parametrize(("clusters", "icc"), [(8, 0.3), (20, 0.8), (50, 0.0), (100, 0.3)])
def test_power_by_simulation(clusters, icc, power):
    """Studies with that true difference: found in a share `power`, p below 0.05."""
    rng = np.random.default_rng(clusters)
    number = np.repeat(np.arange(clusters), sizes(clusters, rng))
    nulls = clustered_means(differences("continuous", number, icc, 500, rng), number, resamples=1)
    se, df = float(np.std([one.mean for one in nulls])), nulls[0].df
    effect = statistics.detectable(se, df, power=power)
    values = differences("continuous", number, icc, 1_000, rng) + effect
    found = np.mean([one.p() < 0.05 for one in clustered_means(values, number, resamples=1_999)])
    assert found == pytest.approx(power, abs=0.07)


def test_it_is_the_noncentral_t():
    effect = statistics.detectable(0.5, 12.5, alpha=0.01, power=0.9)
    beyond = stats.t.ppf(0.995, 12.5)
    far = stats.nct(12.5, effect / 0.5)
    assert far.sf(beyond) + far.cdf(-beyond) == pytest.approx(0.9, abs=1e-4)


def test_more_comparisons_and_fewer_clusters_detect_less():
    assert statistics.detectable(0.5, 12, alpha=0.005) > statistics.detectable(0.5, 12)
    assert statistics.detectable(0.5, 3) > statistics.detectable(0.5, 30)
    assert np.isnan(statistics.detectable(0.0, np.nan))


@pytest.mark.parametrize("asked", [{"alpha": 0}, {"alpha": 1.2}, {"power": 1}, {"power": 0.01}])
def test_errors(asked):
    with pytest.raises(InterpError, match="alpha and power"):
        statistics.detectable(1.0, 10, **asked)


@pytest.mark.parametrize("df", [4.0, 42.936437421615096, 48.85259341914718, 89.58261050936194, 120.3])
@pytest.mark.parametrize("family", [1, 8, 11])
def test_it_is_found_for_any_degrees_of_freedom(df: float, family: int) -> None:
    """Solvers that search for it, as that of statsmodels, lose their way for some of these: `nct` has NaNs there."""
    beyond = stats.t.ppf(1 - 0.025 / family, df)
    found = statistics.detectable(se=1.0, df=df, alpha=0.05 / family)
    assert special.nctdtr(df, found, beyond) == pytest.approx(0.2, abs=1e-6)
    by_hand = np.random.default_rng(1)
    t = (by_hand.normal(size=200_000) + found) / np.sqrt(by_hand.chisquare(df, 200_000) / df)
    assert (abs(t) > beyond).mean() == pytest.approx(0.8, abs=0.005)
