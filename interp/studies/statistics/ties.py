"""Groups of methods that were not shown to differ, instead of ranks.

A rank says that the third is better than the fourth; most often nothing shows it. All pairs are compared, with Holm's
correction over them, and methods that share a letter were not shown to differ (a compact letter display; Piepho,
Journal of Computational and Graphical Statistics 13:456, 2004). A letter is a largest set of methods no two of which
were shown to differ, a maximal clique of that graph. A method can be in several groups: not being shown to differ does
not carry over from neighbour to neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import InterpError
from interp.studies.statistics.clusters import RESAMPLES, clustered_means
from interp.studies.statistics.differences import Better
from interp.studies.statistics.families import corrected
from interp.studies.statistics.items import complete


def tie_groups(
    scores: pd.DataFrame | xr.Dataset,
    methods: Sequence[str] | None = None,
    *,
    item: str = "item",
    cluster: str | None = "cluster",
    better: Better = "higher",
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Methods from the best mean to the worst, with the groups in which nothing separates them.

    Args:
        scores, methods, item, cluster, better, seed, resamples: as for `paired`; items without a score of one of the
            methods are left out of all.
        alpha: two methods are shown to differ where p after Holm's correction over all pairs is below it.

    Returns:
        Columns `method`, `mean`, `groups` (letters, "a" the best: methods that share one were not shown to differ),
        `above` and `below` (the methods that it is shown to be better and worse than, separated by commas), `pairs`
        (compared), `items`, `clusters`, `left_out`, `sentence`.

    Raises InterpError for fewer than two methods, and as `paired` does.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> from interp.studies import statistics
        >>> rng = np.random.default_rng(0)
        >>> table = {"item": range(300)} | {name: rng.normal(mean, 1, 300) for name, mean in zip("xyz", [0, 0, 1])}
        >>> statistics.tie_groups(pd.DataFrame(table), cluster=None)["groups"].tolist()
        ['a', 'b', 'b']
    """
    given, left_out = complete(scores, methods, item, cluster)
    if len(given.scores.columns) < 2:
        raise InterpError("groups are made of at least two methods; pass scores of another one.")
    sign = 1 if better == "higher" else -1
    order = sorted(given.scores.columns, key=lambda name: -sign * given.scores[name].mean())
    pairs = list(combinations(order, 2))
    values = np.stack([(given.scores[one] - given.scores[other]).to_numpy() for one, other in pairs], axis=1)
    found = clustered_means(values, given.cluster, seed=seed, resamples=resamples)
    tests = corrected(pd.DataFrame({"family": "all pairs", "p": [one.p() for one in found]}))
    differ = {pair for pair, p in zip(pairs, tests["p_holm"], strict=True) if p < alpha}
    letters = _letters(order, differ)
    rows = []
    for method in order:
        above = [other for other in order if (method, other) in differ]
        below = [other for other in order if (other, method) in differ]
        rows.append({
            "method": method, "mean": float(given.scores[method].mean()), "groups": letters[method],
            "above": ", ".join(above), "below": ", ".join(below), "pairs": len(pairs), "items": len(given.scores),
            "clusters": found[0].clusters, "left_out": left_out,
            "sentence": _told(method, above, below, len(order), len(pairs)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _letters(order: list[str], differ: set[tuple[str, str]]) -> dict[str, str]:
    import networkx as nx

    alike = nx.Graph()
    alike.add_nodes_from(order)
    alike.add_edges_from(pair for pair in combinations(order, 2) if pair not in differ)
    place = {name: number for number, name in enumerate(order)}
    groups = sorted(sorted(place[name] for name in group) for group in nx.find_cliques(alike))
    return {
        name: "".join(_letter(number) for number, group in enumerate(groups) if place[name] in group) for name in order
    }


def _letter(number: int) -> str:
    """a to z, then (27), (28), ..."""
    return chr(ord("a") + number) if number < 26 else f"({number + 1})"


def _told(method: str, above: list[str], below: list[str], methods: int, pairs: int) -> str:
    said = [f"better than {', '.join(above)}"] * bool(above) + [f"worse than {', '.join(below)}"] * bool(below)
    if not said:
        return f"{method} is not shown to differ from any of the {methods - 1} others ({pairs} pairs, Holm)."
    rest = methods - 1 - len(above) - len(below)
    tied = f"; not shown to differ from {rest} other{'s' * (rest != 1)}" if rest else ""
    return f"{method} is shown to be {' and '.join(said)}{tied} ({pairs} pairs, Holm)."
