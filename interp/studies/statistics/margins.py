"""No loss, and no difference: what only a test against a margin can say.

Two one-sided tests (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15:657, 1987; Lakens, Social
Psychological and Personality Science 8:355, 2017): equivalent is what is shown to lie above -margin and below +margin.
"No loss" is the one test that matters to it: shown to be worse by less than the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import InterpError
from interp.studies.statistics.clusters import RESAMPLES
from interp.studies.statistics.differences import Better, compared, difference
from interp.studies.statistics.families import corrected
from interp.studies.statistics.wording import amount, probability


def equivalence(
    scores: pd.DataFrame | xr.Dataset,
    baseline: str,
    margin: float,
    methods: Sequence[str] | None = None,
    *,
    item: str = "item",
    cluster: str | None = "cluster",
    family: str = "all methods",
    better: Better = "higher",
    units: str = "",
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Whether methods lose less than `margin` against the baseline, and whether they differ by less than it.

    Args:
        scores, baseline, methods, item, cluster, family, better, units, seed, resamples: as for `paired`.
        margin: the difference, in units of the score, that would not matter. It is declared before the scores are
            seen, as is the family.
        alpha: of each one-sided test, after Holm's correction over the family.

    Returns:
        Columns `method`, `baseline`, `difference`, `margin`, `low`, `high` (the interval with confidence 1 - 2 alpha
        that goes with the two tests), `p_loss` and `p_loss_holm` (of a loss of the margin or more), `p` and `p_holm`
        (of a difference of the margin or more), `no_loss` and `equivalent` (whether they are shown), `family`, `items`,
        `clusters`, `design_effect`, `sentence`.

    Where all differences are equal nothing varies and no test can be made: p is NaN and nothing counts as shown.
    Raises InterpError for a margin that is no positive number, and as `paired` does.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> from interp.studies import statistics
        >>> rng = np.random.default_rng(0)
        >>> full = rng.normal(size=200)
        >>> scores = pd.DataFrame({"item": range(200), "full": full, "small": full + rng.normal(0, 0.1, 200)})
        >>> statistics.equivalence(scores, "full", margin=0.05, cluster=None)["no_loss"].tolist()
        [True]
    """
    if not (np.isfinite(margin) and margin > 0):
        raise InterpError(f"the margin is a positive number, the loss that would not matter; found {margin}.")
    if not 0 < alpha < 0.5:
        raise InterpError(f"alpha lies between 0 and 0.5, found {alpha}.")
    given = compared(scores, baseline, methods, item, cluster)
    rows = []
    for method in given.scores.columns.drop(baseline):
        found = difference(given, method, baseline, seed, resamples)
        low, high = found.interval(1 - 2 * alpha)
        sides = found.p_above(-margin), found.p_below(margin)
        rows.append({
            "method": method, "baseline": baseline, "difference": found.mean, "margin": margin, "low": low,
            "high": high, "p_loss": sides[0] if better == "higher" else sides[1], "p": float(np.maximum(*sides)),
            "family": family, "items": found.items, "clusters": found.clusters, "se": found.se,
            "design_effect": found.design_effect, "alpha": alpha, "units": units,
        })  # fmt: skip
    table = corrected(corrected(pd.DataFrame(rows), p="p_loss"))
    table["no_loss"], table["equivalent"] = table["p_loss_holm"] < alpha, table["p_holm"] < alpha
    return table.assign(sentence=[_told(row) for _, row in table.iterrows()]).drop(columns=["se", "units"])


def _told(row: Any) -> str:
    method, baseline, margin = row["method"], row["baseline"], amount(row["margin"], row["units"])
    base = f"{row['items']:,} items in {row['clusters']:,} clusters"
    if row["se"] == 0:
        same = f"{method} minus {baseline} is exactly {amount(row['difference'], row['units'])} on every item ({base})"
        return f"{same}: nothing varies, and no test against a margin of {margin} was made."
    size = int(row["family_size"])
    after = f" after Holm's correction over {size} comparisons" if size > 1 else ""
    interval = (
        f"difference {row['difference']:+.3g}, {1 - 2 * row['alpha']:.0%} interval {row['low']:.3g} to "
        f"{row['high']:.3g}; {base}, design effect {row['design_effect']:.2g}"
    )
    test = f"{probability(row['p_loss_holm'])}{after}; {interval}"
    if row["equivalent"]:
        return (
            f"{method} differs from {baseline} by less than {margin}, in either direction "
            f"({probability(row['p_holm'])}{after}; {interval})."
        )
    if row["no_loss"]:
        return f"{method} loses less than {margin} against {baseline} ({test})."
    return f"It is not shown that {method} loses less than {margin} against {baseline} ({test})."
