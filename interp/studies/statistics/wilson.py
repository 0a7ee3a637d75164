"""Shares of items, such as right answers: Wilson's interval (JASA 22:209, 1927), which stays within 0 and 1 and is
right where a share is small or few items are there, for items that come in clusters.

Wilson's formula is given as many items as independent ones would say as much: n over the design effect, smaller again
by (z / t)² since the design effect is itself an estimate from few clusters (Korn and Graubard, Survey Methodology
24:193, 1998, who do this to the exact interval; Franco et al., Journal of Survey Statistics and Methodology 7:334,
2019, compare it with Wilson's), and never more than there are. Where fewer than ten clusters have a hit, or fewer than
ten have a miss, the design effect cannot be told from them, and each cluster counts as one item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from interp.errors import InterpError
from interp.studies.statistics.clusters import clustered_mean
from interp.studies.statistics.items import items_of

FEWEST_TELLING = 10
"""Clusters with a hit, and with a miss, from which on the design effect is taken from the data: by simulation."""


def proportions(
    scores: pd.DataFrame | xr.Dataset,
    methods: Sequence[str] | None = None,
    *,
    item: str = "item",
    cluster: str | None = "cluster",
    confidence: float = 0.95,
    what: str = "right",
) -> pd.DataFrame:
    """The share of items with score 1 among scores of 0 and 1, a row a method.

    Args:
        scores: a table with a row an item, as `items_of` takes it, scores 0 and 1 or booleans.
        methods: which columns; None: all scores.
        item, cluster: as for `paired`.
        confidence: of the interval.
        what: what a score of 1 is, for the sentences.

    Returns:
        Columns `method`, `share`, `low`, `high`, `count`, `items`, `clusters`, `left_out`, `effective_items` (that
        Wilson's formula was given), `confidence`, `sentence`.

    Compare methods with `paired`, not by whether these intervals overlap: they ignore that the items are the same.
    Raises InterpError for scores besides 0 and 1 and for fewer than two clusters.

    Examples:
        >>> import pandas as pd
        >>> from interp.studies import statistics
        >>> scores = pd.DataFrame({"item": range(6), "full": [1, 1, 0, 1, 1, 1]})
        >>> table = statistics.proportions(scores, cluster=None)
        >>> table[["low", "high"]].round(2).values.tolist()
        [[0.44, 0.97]]
    """
    given = items_of(scores, methods, item, cluster)
    return pd.DataFrame([
        _row(str(name), given.scores[name].to_numpy(), given.cluster, confidence, what) for name in given.scores
    ])  # fmt: skip


def wilson(values: np.ndarray, cluster: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Low, high, and the number of items that Wilson's formula was given.

    values: `[item]`, 0 and 1; cluster: `[item]`, any labels. Raises InterpError for fewer than two clusters.
    """
    from statsmodels.stats.proportion import proportion_confint

    found = clustered_mean(values, cluster, resamples=1)
    _, number = np.unique(cluster, return_inverse=True)
    sizes, hits = np.bincount(number).astype(float), np.bincount(number, values)
    as_one_each = found.items**2 / float((sizes**2).sum())
    effective = float(found.items)
    if found.se > 0 and sizes.max() > 1:  # else items are independent, and the variance of a share is known
        tail = (1 + confidence) / 2
        wider = float(stats.norm.ppf(tail) / stats.t.ppf(tail, found.df)) ** 2
        variance = found.mean * (1 - found.mean)
        effective = min(effective, variance / found.se**2 * wider)
    if min((hits > 0).sum(), (hits < sizes).sum()) < FEWEST_TELLING:
        effective = min(effective, as_one_each)
    low, high = proportion_confint(found.mean * effective, effective, 1 - confidence, method="wilson")
    return float(low), float(high), effective


def _row(name: str, values: np.ndarray, cluster: np.ndarray, confidence: float, what: str) -> dict[str, Any]:
    there = np.isfinite(values)
    values, cluster = values[there], cluster[there]
    if not np.isin(values, (0.0, 1.0)).all():
        raise InterpError(f"{name!r} has scores besides 0 and 1; a share is of items that are {what} or not.")
    low, high, effective = wilson(values, cluster, confidence)
    clusters, left = len(np.unique(cluster)), int((~there).sum())
    return {
        "method": name, "share": float(values.mean()), "low": low, "high": high, "count": int(values.sum()),
        "items": len(values), "clusters": clusters, "left_out": left, "effective_items": effective,
        "confidence": confidence,
        "sentence": f"{name}: {int(values.sum()):,} of {len(values):,} items {what}, {values.mean():.1%} "
        f"({confidence:.0%} interval {low:.1%} to {high:.1%}; {clusters:,} clusters, which say as much as "
        f"{effective:,.0f} independent items)." + (f" {left:,} without a score left out." if left else ""),
    }  # fmt: skip
