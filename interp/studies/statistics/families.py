"""Several comparisons at once: Holm's correction inside each declared family (Scandinavian Journal of Statistics 6:65,
1979), which needs no independence between them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from interp.errors import InterpError
from interp.studies.statistics.power import detectable
from interp.studies.statistics.wording import difference_told


def corrected(table: pd.DataFrame, family: str = "family", p: str = "p") -> pd.DataFrame:
    """The table with `<p>_holm`, the p after Holm's correction over its family, and `family_size`.

    table: a row a comparison, with a column of p and one that names the family: the comparisons among which one false
        alarm would be one too many, declared before they are looked at. Tables of several calls are joined with
        `pandas.concat` and corrected again.

    A p that could not be computed (NaN) counts as a comparison and stays NaN. Of a table that `paired` made, what was
    `detectable` and the sentences are written anew.

    Raises InterpError for columns that are not there.

    Examples:
        >>> import pandas as pd
        >>> from interp.studies import statistics
        >>> rows = pd.DataFrame({"family": ["a", "a", "b"], "p": [0.03, 0.02, 0.03]})
        >>> [float(p) for p in statistics.corrected(rows)["p_holm"]]
        [0.04, 0.04, 0.03]
    """
    if lacking := [name for name in (family, p) if name not in table.columns]:
        there = ", ".join(map(str, table.columns))
        raise InterpError(f"the table of comparisons has no column {lacking[0]!r}; it has {there}.")
    table = table.reset_index(drop=True)
    adjusted, size = np.full(len(table), np.nan), np.zeros(len(table), int)
    for rows in table.groupby(family, sort=False, dropna=False).indices.values():
        raw = table[p].to_numpy(float)[rows]
        size[rows] = len(rows)
        adjusted[rows] = np.where(np.isnan(raw), np.nan, holm(np.nan_to_num(raw, nan=1.0)))
    table = table.assign(**{f"{p}_holm": adjusted, "family_size": size})
    if p == "p" and {"difference", "se", "df", "confidence", "clusters_moved"} <= set(table.columns):
        # in the worst place of a family of k a comparison is tested at alpha / k
        rows_of = (row for _, row in table.iterrows())
        table["detectable"] = [detectable(r.se, r.df, (1 - r.confidence) / r.family_size) for r in rows_of]
        table["sentence"] = [difference_told(row) for _, row in table.iterrows()]
    return table


def holm(p: np.ndarray) -> np.ndarray:
    """p after Holm's correction over the last axis.

    As `statsmodels.stats.multitest.multipletests(p, method="holm")`, which a test compares it with: that collects
    garbage at each call, a third of a second where a model is in memory.
    """
    order = np.argsort(p, axis=-1)
    left = np.arange(p.shape[-1], 0, -1)
    rising = np.maximum.accumulate(np.take_along_axis(p, order, -1) * left, axis=-1)
    corrected_p = np.empty_like(rising)
    np.put_along_axis(corrected_p, order, np.minimum(rising, 1.0), -1)
    return corrected_p
