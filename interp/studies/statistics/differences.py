"""Methods against a baseline on the same items: paired differences, with clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from interp.discovery import unknown
from interp.errors import InterpError
from interp.studies.statistics.clusters import RESAMPLES, ClusteredMean, clustered_mean
from interp.studies.statistics.families import corrected
from interp.studies.statistics.items import Items, items_of

Better = Literal["higher", "lower"]


def paired(
    scores: pd.DataFrame | xr.Dataset,
    baseline: str,
    methods: Sequence[str] | None = None,
    *,
    item: str = "item",
    cluster: str | None = "cluster",
    family: str = "all methods",
    better: Better | None = "higher",
    units: str = "",
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """How each method differs from the baseline on the same items, a row a method.

    Args:
        scores: a table with a row an item, as `items_of` takes it: DataFrame or Dataset.
        baseline: the column that the others are compared with.
        methods: the columns that are compared with it; None: all others.
        item, cluster: the columns with each item's id and what it came from; cluster=None for items of which no two
            share anything.
        family: names the comparisons among which one false alarm would be one too many; `corrected` joins families of
            several calls.
        better: whether a "higher" or a "lower" score is better; None: neither, and sentences say higher and lower.
        units: of the scores, for the sentences.
        confidence: of the interval; a difference counts as shown where p after the correction is below 1 - confidence.
        seed, resamples: of the bootstrap.

    Returns:
        Columns `method`, `baseline`, `mean`, `baseline_mean`, `difference` (method - baseline, mean over items), `low`,
        `high`, `se`, `df`, `p`, `p_holm`, `family`, `family_size`, `items`, `clusters`, `clusters_moved` (in which any
        item differs), `left_out` (items that lack a score of one of the two), `design_effect` (how much larger the
        variance is than that of as many independent items), `effective_items`, `interval` (which one: the clusters
        module says when), `detectable` (the smallest true difference found in 80 % of such studies), `confidence`,
        `better`, `units`, `sentence`. The interval is of one comparison; p_holm of the family.

    Raises InterpError for columns that are not there, scores that are no numbers, items that occur twice, fewer than
    two clusters with both scores.

    Examples:
        >>> import pandas as pd
        >>> from interp.studies import statistics
        >>> right = {"full": [1, 1, 0, 1, 1, 1], "small": [1, 0, 0, 0, 1, 0]}
        >>> scores = pd.DataFrame({"item": range(6), "cluster": list("aabbcc"), **right})
        >>> table = statistics.paired(scores, baseline="full")
        >>> table["difference"].tolist(), table["items"].tolist()
        ([-0.5], [6])
    """
    if not 0.5 <= confidence < 1:
        raise InterpError(f"the confidence of an interval lies between 0.5 and 1, found {confidence}.")
    if better not in ("higher", "lower", None):
        raise InterpError(f"better is 'higher', 'lower' or None, found {better!r}.")
    given = compared(scores, baseline, methods, item, cluster)
    others = given.scores.columns.drop(baseline)
    said = {"family": family, "better": better or "", "units": units, "confidence": confidence}
    rows = [_row(given, method, baseline, confidence, seed, resamples) | said for method in others]
    return corrected(pd.DataFrame(rows))


def compared(
    scores: pd.DataFrame | xr.Dataset, baseline: str, methods: Sequence[str] | None, item: str, cluster: str | None
) -> Items:
    """The scores of the baseline and of what is compared with it. Raises InterpError where one of them is lacking."""
    given = items_of(scores, None if methods is None else [baseline, *methods], item, cluster)
    if baseline not in given.scores:
        raise unknown("column of scores", baseline, given.scores.columns)
    if len(given.scores.columns) < 2:
        raise InterpError(f"there is nothing to compare with {baseline!r}: pass scores of another method too.")
    return given


def difference(given: Items, method: str, baseline: str, seed: int, resamples: int) -> ClusteredMean:
    """Of the items that have both scores. Raises InterpError where they lie in fewer than two clusters."""
    values, cluster = _differences(given, method, baseline)
    try:
        return clustered_mean(values, cluster, seed=seed, resamples=resamples)
    except InterpError as error:
        raise InterpError(f"{method} against {baseline}: {error}") from None


def _differences(given: Items, method: str, baseline: str) -> tuple[np.ndarray, np.ndarray]:
    values = (given.scores[method] - given.scores[baseline]).to_numpy()
    both = np.isfinite(values)
    return values[both], given.cluster[both]


def _row(given: Items, method: str, baseline: str, confidence: float, seed: int, resamples: int) -> dict[str, Any]:
    values, cluster = _differences(given, method, baseline)
    found = difference(given, method, baseline, seed, resamples)
    low, high = found.interval(confidence)
    both = np.isfinite((given.scores[method] - given.scores[baseline]).to_numpy())
    return {
        "method": method, "baseline": baseline,
        "mean": float(given.scores[method][both].mean()), "baseline_mean": float(given.scores[baseline][both].mean()),
        "difference": found.mean, "low": low, "high": high, "se": found.se, "df": found.df, "p": found.p(),
        "items": found.items, "clusters": found.clusters, "clusters_moved": len(np.unique(cluster[values != 0])),
        "left_out": int((~both).sum()), "design_effect": found.design_effect,
        "effective_items": found.effective_items, "interval": found.how,
    }  # fmt: skip
