"""Scores in clusters of which it is known that nothing differs: what intervals are tried on."""

from __future__ import annotations

import numpy as np


def sizes(clusters: int, rng: np.random.Generator, per_cluster: str = "1-10") -> np.ndarray:
    """Items in each cluster: one, ten, or 1 to 10."""
    if per_cluster == "1-10":
        return rng.integers(1, 11, clusters)
    return np.full(clusters, int(per_cluster))


def alike(draw, number: np.ndarray, icc: float, columns: int, rng: np.random.Generator) -> np.ndarray:
    """`[item, column]`: with probability sqrt(icc) an item takes its cluster's value, and its own else.

    Whatever `draw(shape)` draws, two items of a cluster then have the intraclass correlation `icc` exactly.
    """
    shared = draw((number.max() + 1, columns))[number]
    return np.where(rng.random(shared.shape) < np.sqrt(icc), shared, draw(shared.shape))


def differences(kind: str, number: np.ndarray, icc: float, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Differences `[item, column]` of two methods that are equally good, of binary or of continuous scores."""
    if kind == "binary":  # both right half of the time: -1, 0, 0, 1
        return alike(lambda shape: rng.choice([-1.0, 0.0, 0.0, 1.0], shape), number, icc, columns, rng)
    if kind == "rare":  # few items differ at all
        return alike(lambda shape: rng.choice([-1.0, 0.0, 1.0], shape, p=[0.04, 0.92, 0.04]), number, icc, columns, rng)
    if kind == "skewed":
        return alike(lambda shape: rng.exponential(1.0, shape) - 1, number, icc, columns, rng)
    shared = rng.standard_normal((number.max() + 1, columns))[number]
    return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.standard_normal(shared.shape)
