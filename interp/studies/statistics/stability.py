"""Which rank of a unit (a head, a layer, a channel) would stay if other items had been drawn.

The interval of a rank is made of the comparisons with all other units: a unit is at best behind those that are shown to
be larger, at worst before those that are shown to be smaller (Mogstad et al., Review of Economic Studies 91:476, 2024;
here with Holm's correction over the other units). Ranks of resamples alone would be too sure: the means that they
scatter around are scattered themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from interp.errors import InterpError
from interp.studies.statistics.clusters import by_cluster, degrees_of_freedom, resampled
from interp.studies.statistics.families import holm
from interp.studies.statistics.items import complete

RESAMPLES = 1_999


def rank_stability(
    values: pd.DataFrame | xr.Dataset,
    units: Sequence[str] | None = None,
    *,
    top: int = 5,
    item: str = "item",
    cluster: str | None = "cluster",
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Units from the largest mean to the smallest, with the ranks that the items leave open.

    Args:
        values: a table with a row an item and a column a unit, as `items_of` takes it: how much restoring each head
            recovers, say. Items that lack a value of one unit are left out.
        units: which columns; None: all.
        top: of how many a place among the first is asked.
        item, cluster, seed: as for `paired`.
        confidence: of each unit's interval of ranks.
        resamples: of clusters, for the shares.

    Returns:
        Columns `unit`, `mean`, `rank` (1 the largest), `rank_low`, `rank_high` (its interval), `first_share` and
        `top_share` (of the resamples in which it is the first, and among the first `top`: a description, no test),
        `items`, `clusters`, `left_out`, `sentence`. The attribute `kendall` is the mean rank correlation of a resample
        with the whole.

    Raises InterpError for fewer than two units or two clusters, and a `top` that is no number of units.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> from interp.studies import statistics
        >>> rng = np.random.default_rng(0)
        >>> table = {"item": range(99)} | {f"head {i}": rng.normal(mean, 1, 99) for i, mean in enumerate([0, 2, 0])}
        >>> found = statistics.rank_stability(pd.DataFrame(table), cluster=None, top=1)
        >>> found[["unit", "rank_low", "rank_high"]].values.tolist()
        [['head 1', 1, 1], ['head 0', 2, 3], ['head 2', 2, 3]]
    """
    given, left_out = complete(values, units, item, cluster)
    names, count = list(given.scores.columns), len(given.scores.columns)
    if count < 2:
        raise InterpError("ranks need at least two units; pass values of another one.")
    if not 1 <= top <= count:
        raise InterpError(f"top is a number of units, 1 to {count}; found {top}.")
    sizes = np.bincount(given.cluster).astype(float)
    if len(sizes) < 2:
        raise InterpError("ranks need items of at least two clusters: nothing else says how they would vary.")
    table = given.scores.to_numpy()
    low, high = _intervals(table, given.cluster, sizes, 1 - confidence)
    ranks = _ranks(resampled(by_cluster(table, given.cluster), sizes[:, None], seed, resamples))
    whole = _ranks(table.mean(0)[None])[0]
    rows = [
        {
            "unit": names[i], "mean": float(table[:, i].mean()), "rank": int(whole[i]), "rank_low": int(low[i]),
            "rank_high": int(high[i]), "first_share": float((ranks[:, i] == 1).mean()),
            "top_share": float((ranks[:, i] <= top).mean()), "items": len(table), "clusters": len(sizes),
            "left_out": left_out,
        }
        for i in np.argsort(whole)
    ]  # fmt: skip
    found = pd.DataFrame(rows)
    found["sentence"] = [_told(row, count, top, confidence) for _, row in found.iterrows()]
    found.attrs["kendall"] = float(np.mean([stats.kendalltau(one, whole).statistic for one in ranks[:200]]))
    return found


def _intervals(table: np.ndarray, number: np.ndarray, sizes: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest rank of each unit, from CR2 t tests against every other one."""
    items, mean = len(table), table.mean(0)
    weighted = by_cluster(table - mean, number) / np.sqrt(1 - sizes / items)[:, None]
    both = weighted.T @ weighted / items**2  # covariance of the means, CR2
    spread = np.sqrt(np.maximum(np.diag(both)[:, None] + np.diag(both)[None] - 2 * both, 0))
    gap = mean[:, None] - mean[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.abs(gap) / spread
    p = np.nan_to_num(2 * stats.t.sf(np.where(spread > 0, steps, 0), degrees_of_freedom(sizes)), nan=1.0)
    others = ~np.eye(len(mean), dtype=bool)
    shown = np.zeros_like(others)
    shown[others] = (holm(p[others].reshape(len(mean), -1)) < alpha).ravel()
    return 1 + (shown & (gap < 0)).sum(1), len(mean) - (shown & (gap > 0)).sum(1)


def _ranks(means: np.ndarray) -> np.ndarray:
    """1 for the largest of each row; of equal ones the first column comes first."""
    order = np.argsort(-means, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, means.shape[1] + 1)[None].repeat(len(means), 0), 1)
    return ranks


def _told(row: Any, count: int, top: int, confidence: float) -> str:
    where = f"{row['unit']} is number {row['rank']} of {count} by its mean"
    if row["rank_low"] == row["rank_high"]:
        return f"{where}, and the items leave no other rank open ({confidence:.0%} interval, Holm)."
    return (
        f"{where}; the items leave ranks {row['rank_low']} to {row['rank_high']} open ({confidence:.0%} interval, "
        f"Holm), and it is among the first {top} in {row['top_share']:.0%} of the resamples."
    )
