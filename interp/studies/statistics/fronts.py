"""The Pareto front of quality against a cost: measured bytes, seconds, or tokens a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from interp.discovery import unknown
from interp.errors import InterpError
from interp.studies.statistics.clusters import RESAMPLES, by_cluster, clustered_means, resampled
from interp.studies.statistics.differences import Better
from interp.studies.statistics.families import corrected
from interp.studies.statistics.items import Items, complete
from interp.studies.statistics.wording import probability


def pareto(
    scores: pd.DataFrame | xr.Dataset,
    cost: Mapping[str, float],
    *,
    cost_name: str = "bytes",
    cheaper: Literal["lower", "higher"] = "lower",
    item: str = "item",
    cluster: str | None = "cluster",
    better: Better = "higher",
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Which methods no other one beats at the same cost or less, and how sure that is.

    Args:
        scores, item, cluster, better, seed, resamples: as for `paired`; the methods are those that have a cost, and
            items without a score of one of them are left out of all.
        cost: a number for each method, such as measured bytes of the cache.
        cost_name: what the number is, for the sentences.
        cheaper: "lower" for bytes and seconds, "higher" for tokens a second.
        alpha: of the test, Holm-corrected over the methods off the front, that one is worse than what it lies behind.

    Returns:
        From the cheapest to the dearest, columns `method`, `mean`, `cost`, `on_front` (by the means), `front_share` (of
        the resamples of clusters in which it is on the front), `behind` (the best method that costs no more and scores
        no less, or nothing), `p` and `p_holm` (of the difference from it), `items`, `clusters`, `left_out`, `sentence`.

    Cost is taken as known; where it varies from run to run too, `front_share` does not say so.
    Raises InterpError for methods without a column of scores, fewer than two methods, and costs that are not finite.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> from interp.studies import statistics
        >>> rng = np.random.default_rng(0)
        >>> table = {"item": range(99)} | {name: rng.normal(mean, 1, 99) for name, mean in zip("xyz", [0, 2, 1])}
        >>> front = statistics.pareto(pd.DataFrame(table), {"x": 1e6, "y": 2e6, "z": 3e6}, cluster=None)
        >>> front["on_front"].tolist(), front["behind"].tolist()
        ([True, True, False], ['', '', 'y'])
    """
    if len(cost) < 2:
        raise InterpError(f"a front is made of at least two methods with a {cost_name}; found {len(cost)}.")
    if wrong := [name for name, value in cost.items() if not np.isfinite(value)]:
        raise InterpError(f"the {cost_name} of {wrong[0]!r} is not finite: {cost[wrong[0]]}.")
    price = {"lower": 1, "higher": -1}.get(cheaper, 0)
    if not price:
        raise unknown("direction", cheaper, ["lower", "higher"])
    order = sorted(cost, key=lambda name: price * cost[name])
    given, left_out = complete(scores, order, item, cluster)
    sign = 1 if better == "higher" else -1
    totals = by_cluster(sign * given.scores[order].to_numpy(), given.cluster)
    sizes = np.bincount(given.cluster).astype(float)[:, None]
    quality, prices = totals.sum(0) / sizes.sum(), price * np.array([cost[name] for name in order], float)
    drawn = resampled(totals, sizes, seed, resamples)
    share = (~beaten(drawn, prices)).mean(0)
    front = ~beaten(quality[None], prices)[0]
    rows = []
    for i, name in enumerate(order):
        rivals = [j for j in range(len(order)) if prices[j] <= prices[i] and quality[j] >= quality[i] and j != i]
        behind = "" if front[i] else order[max(rivals, key=lambda j: quality[j])]
        rows.append({
            "method": name, "mean": sign * quality[i], "cost": float(cost[name]), "on_front": bool(front[i]),
            "front_share": float(share[i]), "behind": behind, "p": _p(given, name, behind, seed, resamples),
            "family": "front" if front[i] else "behind", "items": len(given.scores), "clusters": len(sizes),
            "left_out": left_out,
        })  # fmt: skip
    table = corrected(pd.DataFrame(rows))
    table["sentence"] = [_told(row, cost, cost_name, alpha) for _, row in table.iterrows()]
    return table.drop(columns=["family", "family_size"])


def beaten(quality: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Whether another method costs no more and is no worse, and is better in one of the two: bool `[draw, method]`.

    quality: `[draw, method]`, higher is better; prices: `[method]`, lower is better.
    """
    found = np.zeros(quality.shape, bool)
    for i in range(quality.shape[1]):  # one method at a time: draws x methods at once, not draws x methods x methods
        no_dearer, no_worse = prices <= prices[i], quality >= quality[:, [i]]
        one_better = (prices < prices[i]) | (quality > quality[:, [i]])
        found[:, i] = (no_dearer & no_worse & one_better).any(1)
    return found


def _p(given: Items, method: str, other: str, seed: int, resamples: int) -> float:
    if not other:
        return np.nan
    values = (given.scores[method] - given.scores[other]).to_numpy()[:, None]
    return clustered_means(values, given.cluster, seed=seed, resamples=resamples)[0].p()


def _told(row: Any, cost: Mapping[str, float], cost_name: str, alpha: float) -> str:
    at = f"{row['method']} ({row['cost']:,.4g} {cost_name}, mean {row['mean']:.4g})"
    if row["on_front"]:
        return f"{at} is on the front, and is in {row['front_share']:.0%} of the resamples."
    rival = f"{row['behind']}, which has {cost[row['behind']]:,.4g} {cost_name}"
    if row["p_holm"] < alpha:
        return f"{at} lies behind {rival}, and scores worse ({probability(row['p_holm'])} after Holm's correction)."
    tested = "no test was made" if np.isnan(row["p_holm"]) else f"{probability(row['p_holm'])} after Holm's correction"
    return (
        f"{at} lies behind {rival}, by the means alone: that it scores worse is not shown ({tested}); it is on the "
        f"front in {row['front_share']:.0%} of the resamples."
    )
