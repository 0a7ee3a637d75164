"""What is said of many items: ratios of sums, with intervals that know of clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

Column = Callable[[pd.DataFrame], Any]
"""From a table of items (their scores and `cluster`) to one number an item."""
LEVEL = 0.95


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

    Shares have Wilson's interval with the number of items that would tell as much if they were independent: that of the
    items where each is its own cluster, else the one at which a binomial share has the variance that the clusters show
    (of the linearised ratio, between clusters), with Student's t for few clusters. Wilson's interval with an effective
    size is what Franco et al. (J. Surv. Stat. Methodol. 2019) find to cover best in surveys. Where nothing varies
    between clusters (all right, all wrong) their number is that of the items. Other numbers have value ± t * standard
    error. In simulation 95 % of the intervals hold the true share with 50 clusters of 10 items (64 % of those that take
    items for independent), but 88 % with 30 clusters of 12 whose shares lie far apart around 95 %.
    """
    over = np.asarray(metric.over(table), dtype=float)
    under = np.asarray(metric.under(table), dtype=float)
    cluster = pd.factorize(table["cluster"])[0]
    counts = under > 0
    number = len(np.unique(cluster[counts]))
    if not under.sum() > 0 or not np.isfinite(over).all():
        return Estimate(np.nan, np.nan, np.nan, 0.0)
    ratio = float(over.sum() / under.sum())
    alone = number == counts.sum() and np.isin(over[counts], (0.0, 1.0)).all() and (under[counts] == 1).all()
    left = np.bincount(cluster, over - ratio * under)
    variance = np.nan if number < 2 else number / (number - 1) * float((left**2).sum()) / float(under.sum()) ** 2
    t = float(stats.t.ppf((1 + LEVEL) / 2, number - 1)) if number > 1 else np.nan
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    if not metric.share:
        wide = t * np.sqrt(variance)
        limits, effective = (ratio - wide, ratio + wide), float(number)
    elif alone:
        effective = float(counts.sum())
        limits = wilson(ratio, effective, z)
    elif number < 2:
        limits, effective = (np.nan, np.nan), float(number)
    else:
        if variance > 1e-15 and 0 < ratio < 1:
            effective = min(ratio * (1 - ratio) / variance * (z / t) ** 2, float(counts.sum()))
        else:
            effective = float(number if ratio in (0.0, 1.0) else counts.sum())
        limits = wilson(ratio, effective, z)
    turned = metric.of or float
    return Estimate(turned(ratio), turned(limits[0]), turned(limits[1]), effective)


def wilson(share: float, number: float, z: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share of so many; the number need not be whole, as effective ones are not."""
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * np.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    low, high = max(0.0, float(middle - half)), min(1.0, float(middle + half))
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)
