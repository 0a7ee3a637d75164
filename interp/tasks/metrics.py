"""What is said of many items: ratios of sums, with intervals that know of clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from interp.studies.statistics.clusters import degrees_of_freedom
from interp.studies.statistics.wilson import FEWEST_TELLING

Column = Callable[[pd.DataFrame], Any]
"""From a table of items (their scores and `cluster`) to one number an item."""
LEVEL = 0.95
NOTHING = 1e-12
"""A standard error of a share, or a part of a sum, below this is rounding."""


def ones(table: pd.DataFrame) -> Any:
    """Each item counts as one."""
    return np.ones(len(table))


@dataclass(frozen=True)
class Metric:
    """A number of many items: the sum of one column over the sum of another.

    A mean is a ratio over the number of items; precision, recall, F1, a share of whole pairs and a weighted mean are
    ratios as well, so that one way to an interval serves all.
    """

    description: str
    over: Column
    under: Column = ones
    units: str = "1"
    share: bool = True
    """Whether it lies between 0 and 1, and has a Wilson interval."""
    of: Callable[[float], float] | None = None
    """What the ratio is turned into, such as its exponential; must grow with it."""


class Estimate(NamedTuple):
    """A number with its interval; NaN where the items do not tell."""

    value: float
    low: float
    high: float
    effective: float
    """How many independent items would tell as much."""


def estimate(metric: Metric, table: pd.DataFrame) -> Estimate:
    """A metric of a table of items, with its 95 % interval.

    As `interp.studies.statistics` has it for means, here for ratios of sums: the standard error is cluster-robust (CR2,
    of the linearised ratio), with Bell and McCaffrey's degrees of freedom. Shares have Wilson's interval with the
    number of items that would tell as much if they were independent; where fewer than ten clusters have a hit, or fewer
    than ten a miss, each cluster counts as one item. Other numbers have value ± t * standard error. For a share of
    items the interval is that of `statistics.proportions`. One cluster gives no interval.
    """
    over = np.asarray(metric.over(table), dtype=float)
    under = np.asarray(metric.under(table), dtype=float)
    counts = under > 0
    if not counts.any() or not np.isfinite(over).all():
        return Estimate(np.nan, np.nan, np.nan, 0.0)
    cluster = np.unique(table["cluster"][counts], return_inverse=True)[1]
    over, under = over[counts], under[counts]
    tops, sizes = np.bincount(cluster, over), np.bincount(cluster, under)
    ratio = float(over.sum() / under.sum())
    turned = metric.of or float
    if len(sizes) < 2:
        return Estimate(turned(ratio), np.nan, np.nan, 1.0)
    part = sizes / sizes.sum()
    error = float(np.sqrt((((tops - ratio * sizes) ** 2) / (1 - part)).sum()) / sizes.sum())
    t = float(stats.t.ppf((1 + LEVEL) / 2, degrees_of_freedom(len(over) * part)))
    if not metric.share:
        return Estimate(turned(ratio), turned(ratio - t * error), turned(ratio + t * error), float(len(sizes)))
    effective = _independent(under)
    alone = len(sizes) == len(over) and bool((under == 1).all()) and bool(np.isin(over, (0.0, 1.0)).all())
    if error > NOTHING and not alone:  # of independent items the variance of a share is known
        z = float(stats.norm.ppf((1 + LEVEL) / 2))
        effective = min(effective, ratio * (1 - ratio) / error**2 * (z / t) ** 2)
    if min((tops > 0).sum(), (tops < sizes * (1 - NOTHING)).sum()) < FEWEST_TELLING:
        effective = min(effective, _independent(sizes))
    low, high = proportion_confint(ratio * effective, effective, 1 - LEVEL, method="wilson")
    return Estimate(turned(ratio), turned(float(low)), turned(float(high)), effective)


def _independent(weights: np.ndarray) -> float:
    """As many as would weigh the same and tell as much as these (Kish)."""
    return float(weights.sum() ** 2 / (weights**2).sum())
