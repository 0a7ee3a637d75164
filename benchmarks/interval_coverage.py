"""How often the intervals of `interp.studies.statistics` hold the truth, and how often a true difference is found.

Studies are simulated of which it is known that nothing differs: items in clusters, intraclass correlation from 0 to
0.8. `interval_coverage` sets the interval that is used beside the plain percentile interval of the same cluster
bootstrap and beside one that takes items as independent; `interval_coverage_shares` is Wilson's;
`interval_coverage_power` sets the power of 80 % that a minimum detectable effect is made for beside the share of
studies that find it; `interval_coverage_edge` sets the bootstrap beside CR2 where there are few clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from benchmarks.clustered_nulls import alike, coverage, differences, sizes, studies
from benchmarks.table import publish
from interp.studies.statistics.clusters import clustered_means, degrees_of_freedom
from interp.studies.statistics.power import detectable
from interp.studies.statistics.wilson import wilson

REPEATS, LAYOUTS = 2_000, 20
CLUSTERS, ICC, KINDS = (8, 20, 50, 200), (0.0, 0.3, 0.8), ("binary", "continuous")
SHARES = (0.5, 0.2, 0.05, 0.02)
CELLS = [
    *((c, per, i, kind) for kind in KINDS for per in ("1-10", "10") for c in CLUSTERS for i in ICC),
    *((c, "1-10", icc, "continuous") for c in (3, 5, 11, 12) for icc in (0.0, 0.8)),
    *((c, "1-10", icc, kind) for kind in ("skewed", "rare") for c in CLUSTERS for icc in (0.0, 0.8)),
]  # fmt: skip


def intervals(clusters: int, per_cluster: str, icc: float, kind: str) -> dict[str, Any]:
    """Per cent of 95 % intervals that hold the truth, three ways."""
    ours, percentile, independent, nothing = [], [], [], 0
    found: list[Any] = []
    for values, _, found in studies(clusters, icc, kind, REPEATS, LAYOUTS, per_cluster=per_cluster):
        reach = stats.norm.ppf(0.975) * values.std(0, ddof=1) / np.sqrt(len(values))
        independent.append(np.abs(values.mean(0)) <= reach)
        nothing += sum(one.se == 0 for one in found)
        limits = np.array([one.interval() for one in found if one.se > 0])
        ours.append((limits[:, 0] <= 0) & (limits[:, 1] >= 0))
        if found[0].draws is not None:
            plain = np.array([np.quantile(one.draws, [0.025, 0.975]) for one in found if one.draws is not None])
            percentile.append((plain[:, 0] <= 0) & (plain[:, 1] >= 0))
    return {
        "scores": kind, "clusters": clusters, "items a cluster": per_cluster, "intraclass correlation": icc,
        "interval": next((one.how for one in found if one.se > 0), ""),
        "covered": _percent(ours), "plain percentile": _percent(percentile), "items independent": _percent(independent),
        "no interval": round(100 * nothing / REPEATS, 1), "studies": REPEATS,
    }  # fmt: skip


def edge(clusters: int, icc: float, kind: str) -> dict[str, Any]:
    """Both intervals on the same studies: where the line between them lies."""
    row: dict[str, Any] = {"scores": kind, "clusters": clusters, "items a cluster": 10, "intraclass correlation": icc}
    for name, fewest in (("cluster bootstrap", 2), ("CR2", clusters + 1)):
        covered = coverage(clusters, icc, kind, REPEATS, LAYOUTS, per_cluster="10", fewest=fewest)
        row[name] = round(covered, 1)
    return row | {"studies": REPEATS}


def shares(share: float, clusters: int, icc: float) -> dict[str, Any]:
    """Per cent of Wilson intervals of a share that hold it: with clusters, and with items taken as independent."""
    rng = np.random.default_rng([clusters, int(100 * share), int(10 * icc)])
    held: list[bool] = []
    plain: list[bool] = []
    for _ in range(LAYOUTS):
        number = np.repeat(np.arange(clusters), sizes(clusters, rng))
        values = alike(lambda shape: (rng.random(shape) < share) * 1.0, number, icc, 50, rng)
        for column in values.T:
            for ways, of in ((held, number), (plain, np.arange(len(number)))):
                low, high, _ = wilson(column, of)
                ways.append(low <= share <= high)
    return {
        "share": share, "clusters": clusters, "intraclass correlation": icc, "covered": _percent([np.array(held)]),
        "items independent": _percent([np.array(plain)]), "studies": len(held),
    }  # fmt: skip


def power(clusters: int, icc: float) -> dict[str, Any]:
    """Per cent of studies with a true difference of the minimum detectable effect that find it."""
    rng = np.random.default_rng([clusters, int(10 * icc)])
    found, effects = [], []
    for seed in range(LAYOUTS):
        drawn = sizes(clusters, rng)
        number = np.repeat(np.arange(clusters), drawn)
        spread = np.sqrt((drawn * (1 - icc) + drawn**2 * icc).sum()) / drawn.sum()  # of the mean, known here
        effects.append(detectable(float(spread), degrees_of_freedom(drawn.astype(float))))
        values = differences("continuous", number, icc, REPEATS // LAYOUTS, rng) + effects[-1]
        studied = clustered_means(values, number, seed=seed, resamples=4_999)
        found.append(np.array([one.p() < 0.05 for one in studied]))
    return {
        "clusters": clusters, "intraclass correlation": icc, "true difference": round(float(np.mean(effects)), 3),
        "found": _percent(found), "asked for": 80.0, "studies": REPEATS,
    }  # fmt: skip


def _percent(held: list[np.ndarray]) -> float | None:
    return round(100 * float(np.concatenate(held).mean()), 1) if held else None


def main() -> None:
    publish("interval_coverage_power", [power(c, icc) for c in CLUSTERS for icc in ICC])
    publish("interval_coverage_shares", [shares(p, c, i) for p in SHARES for c in CLUSTERS for i in ICC])
    publish("interval_coverage_edge", [edge(c, i, k) for k in KINDS for c in (5, 8, 12, 16) for i in (0.0, 0.8)])
    publish("interval_coverage", [intervals(*cell) for cell in CELLS])


if __name__ == "__main__":
    main()
