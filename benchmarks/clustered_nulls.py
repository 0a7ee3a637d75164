"""Scores in clusters of which it is known that nothing differs, and how often intervals hold that truth.

What `interval_coverage` reports and the tests of `interp/studies/statistics` are run on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from interp.studies.statistics.clusters import FEWEST_CLUSTERS, ClusteredMean, clustered_means

Draw = Callable[[tuple[int, ...]], np.ndarray]


def sizes(clusters: int, rng: np.random.Generator, per_cluster: str = "1-10") -> np.ndarray:
    """Items in each cluster: a number, or 1 to 10."""
    return rng.integers(1, 11, clusters) if per_cluster == "1-10" else np.full(clusters, int(per_cluster))


def alike(draw: Draw, number: np.ndarray, icc: float, columns: int, rng: np.random.Generator) -> np.ndarray:
    """`[item, column]`: with probability sqrt(icc) an item takes its cluster's value, and its own else.

    Whatever `draw(shape)` draws, two items of a cluster then have the intraclass correlation `icc` exactly.
    """
    shared = draw((number.max() + 1, columns))[number]
    return np.where(rng.random(shared.shape) < np.sqrt(icc), shared, draw(shared.shape))


def differences(kind: str, number: np.ndarray, icc: float, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Differences `[item, column]` of two methods that are equally good.

    kind: "binary", scores of 0 and 1, each right half of the time; "rare", the same where few items differ at all (8 in
        100); "skewed", exponential; "continuous", normal.
    """
    draws: dict[str, Draw] = {
        "binary": lambda shape: rng.choice([-1.0, 0.0, 0.0, 1.0], shape),
        "rare": lambda shape: rng.choice([-1.0, 0.0, 1.0], shape, p=[0.04, 0.92, 0.04]),
        "skewed": lambda shape: rng.exponential(1.0, shape) - 1,
    }
    if kind in draws:
        return alike(draws[kind], number, icc, columns, rng)
    shared = rng.standard_normal((number.max() + 1, columns))[number]
    normal: np.ndarray = np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.standard_normal(shared.shape)
    return normal


def studies(
    clusters: int,
    icc: float,
    kind: str,
    repeats: int,
    layouts: int,
    per_cluster: str = "1-10",
    resamples: int = 1_999,
    fewest: int = FEWEST_CLUSTERS,
) -> list[tuple[np.ndarray, np.ndarray, list[ClusteredMean]]]:
    """Null studies: for each of `layouts` draws of the clusters' sizes, values `[item, study]`, the items' clusters and
    what is found; `repeats` studies in all."""
    rng = np.random.default_rng([clusters, int(10 * icc), sum(map(ord, kind)), repeats])
    made = []
    for seed in range(layouts):
        number = np.repeat(np.arange(clusters), sizes(clusters, rng, per_cluster))
        values = differences(kind, number, icc, repeats // layouts, rng)
        made.append((values, number, clustered_means(values, number, seed=seed, resamples=resamples, fewest=fewest)))
    return made


def coverage(clusters: int, icc: float, kind: str, repeats: int, layouts: int, **settings: Any) -> float:
    """Per cent of the 95 % intervals that hold 0, which is true; of those that exist."""
    held = [
        low <= 0 <= high
        for _, _, found in studies(clusters, icc, kind, repeats, layouts, **settings)
        for low, high in (one.interval() for one in found if one.se > 0)
    ]
    return 100 * float(np.mean(held))
