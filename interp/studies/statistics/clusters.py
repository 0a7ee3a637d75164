"""The mean of per-item numbers that come in clusters, and how far it may be off.

Items of one document, image or template are alike, so that they say less than as many independent ones. Two intervals
know this. With twelve clusters or more whole clusters are drawn again with replacement (the cluster bootstrap; Field
and Welsh, JRSS B 69:369, 2007), and the percentiles are taken as far out as a t interval would: a plain percentile
interval is too narrow by sqrt((C - 1) / C) and by what separates t from z (Hesterberg, The American Statistician
69:371, 2015, "expanded percentile"). With fewer, draws cannot reach that far, and the interval is the cluster-robust
standard error CR2 times a t quantile. The degrees of freedom of both are Bell and McCaffrey's (Survey Methodology
28:169, 2002), which are fewer than C - 1 where clusters differ in size. `benchmarks/interval_coverage.py` says how
often each is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from interp.errors import InterpError

RESAMPLES = 9_999
FEWEST_CLUSTERS = 12
"""Below this, and below `FEWEST_DEGREES`, the interval is CR2's: by simulation, where draws no longer reach."""
FEWEST_DEGREES = 4.0
BLOCK_BYTES = 64_000_000
BOOTSTRAP, ROBUST = "cluster bootstrap", "cluster-robust t (CR2)"
NOTHING = 1e-12
"""Spread below this part of the largest number is rounding."""


@dataclass(frozen=True)
class ClusteredMean:
    """The mean over items, with what its clusters allow to say of it."""

    mean: float
    se: float
    """Standard error CR2; 0 where all items are equal, and then there is no interval."""
    df: float
    items: int
    clusters: int
    design_effect: float
    """The variance of the mean over what as many independent items would have; NaN where nothing varies."""
    draws: np.ndarray | None = None
    """Means of resamples, sorted; None where the interval is CR2's."""

    @property
    def effective_items(self) -> float:
        """As many independent items would say as much."""
        return self.items / self.design_effect

    @property
    def how(self) -> str:
        """Which interval this is, in words."""
        return ROBUST if self.draws is None else BOOTSTRAP

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Two-sided limits; NaN where nothing varies."""
        if self.se == 0:
            return np.nan, np.nan
        reach = float(stats.t.ppf((1 + confidence) / 2, self.df))
        if self.draws is None:
            return self.mean - reach * self.se, self.mean + reach * self.se
        tail = float(stats.norm.cdf(-reach * self._widening))
        low, high = np.quantile(self.draws, [tail, 1 - tail])
        return float(low), float(high)

    def p(self, null: float = 0.0) -> float:
        """Two-sided p of the mean being `null`: 1 - p is the confidence at which the interval just reaches it."""
        if self.se == 0:
            return 1.0 if self.mean == null else np.nan
        return min(1.0, 2 * min(self.p_above(null), self.p_below(null)))

    def p_above(self, null: float) -> float:
        """One-sided p of a mean of at most `null`: small where the mean is shown to lie above."""
        return np.nan if self.se == 0 else float(stats.t.sf(self._steps_above(null), self.df))

    def p_below(self, null: float) -> float:
        """One-sided p of a mean of at least `null`: small where the mean is shown to lie below."""
        return np.nan if self.se == 0 else float(stats.t.cdf(self._steps_above(null), self.df))

    @property
    def _widening(self) -> float:
        return float(np.sqrt(self.clusters / (self.clusters - 1)))

    def _steps_above(self, null: float) -> float:
        """How many standard errors the mean lies above `null`, read off the draws where they reach it."""
        plain = (self.mean - null) / self.se
        if self.draws is None:
            return plain
        n = len(self.draws)
        below = (np.searchsorted(self.draws, null, "left") + np.searchsorted(self.draws, null, "right")) / 2
        seen = -float(stats.norm.ppf(np.clip(below, 0.5, n - 0.5) / n)) / self._widening
        # beyond the outermost draw the draws only say "further than this", and the standard error how far
        return seen if 0.5 < below < n - 0.5 else float(np.sign(plain)) * max(abs(plain), abs(seen))


def clustered_mean(
    values: np.ndarray, cluster: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> ClusteredMean:
    """The mean over items of `values`, for items in clusters.

    values: `[item]`, finite.
    cluster: `[item]`, what the item came from, any labels.

    The same seed gives the same draws. Raises InterpError for fewer than two clusters: nothing then says how much the
    next document or image would differ.

    Examples:
        >>> import numpy as np
        >>> from interp.studies import statistics
        >>> score = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
        >>> found = statistics.clustered_mean(score, np.array(["a", "a", "b", "b", "c", "c"]))
        >>> found.mean, found.how
        (0.5, 'cluster-robust t (CR2)')
    """
    return clustered_means(np.asarray(values, float)[:, None], cluster, seed=seed, resamples=resamples)[0]


def clustered_means(
    values: np.ndarray,
    cluster: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    fewest: int = FEWEST_CLUSTERS,
) -> list[ClusteredMean]:
    """`clustered_mean` of each column of `values` `[item, column]`; all see the same draws.

    fewest: clusters from which on the bootstrap is used.
    """
    _, number = np.unique(cluster, return_inverse=True)
    sizes = np.bincount(number).astype(float)
    if len(sizes) < 2:
        raise InterpError(
            f"{len(values)} items in {len(sizes)} cluster: an interval needs at least two clusters; take items from "
            "more documents or images, or name a cluster that divides them."
        )
    items, mean = len(values), values.mean(0)
    totals, centred = by_cluster(values, number), by_cluster(values - mean, number)
    share = (sizes / items)[:, None]
    variance = (centred**2 / (1 - share)).sum(0) / items**2
    alone = values.var(0, ddof=1) / items
    varies = variance > (NOTHING * np.abs(values).max(0)) ** 2
    df = degrees_of_freedom(sizes)
    enough = len(sizes) >= fewest and df >= FEWEST_DEGREES
    draws = np.sort(resampled(totals, sizes[:, None], seed, resamples), axis=0) if enough else None
    return [
        ClusteredMean(
            float(mean[i]), float(np.sqrt(variance[i])), df, items, len(sizes), float(variance[i] / alone[i]),
            None if draws is None else draws[:, i],
        )
        if varies[i]
        else ClusteredMean(float(mean[i]), 0.0, np.nan, items, len(sizes), np.nan)
        for i in range(values.shape[1])
    ]  # fmt: skip


def by_cluster(values: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Sums `[cluster, column]` of `values` `[item, column]`; number: `[item]`, from 0."""
    return np.stack([np.bincount(number, column) for column in values.T], axis=1)


def degrees_of_freedom(sizes: np.ndarray) -> float:
    """Bell and McCaffrey's degrees of freedom of a CR2 standard error of a mean, from the sizes of the clusters.

    Items are taken as independent for this alone. C - 1 where all clusters are of one size.
    """
    items = sizes.sum()
    across = sizes**2 / (items * (1 - sizes / items))
    return float(items**2 / ((sizes**2).sum() + across.sum() ** 2 - (across**2).sum()))


def resampled(totals: np.ndarray, sizes: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means `[resample, method]` over items when whole clusters are drawn with replacement.

    totals, sizes: `[cluster, method]`, sums of scores and numbers of items. All methods see the same draws. NaN where
    a draw holds no item of a method.
    """
    blocks = []
    with np.errstate(invalid="ignore"):
        for times in _times_drawn(len(totals), seed, resamples):
            blocks.append((times @ totals) / (times @ sizes))
    return np.concatenate(blocks)


def _times_drawn(clusters: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each cluster is in each resample, `[resample, cluster]`, some resamples at a time."""
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK_BYTES // (16 * clusters))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(clusters, size=(count, clusters)) + clusters * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * clusters).reshape(count, clusters).astype(float)
