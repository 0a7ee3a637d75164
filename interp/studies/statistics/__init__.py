"""Statistics of studies: per-item scores in, tables out, each row with a sentence that the numbers back.

Scores are a table with a row an item: its id, the cluster that it came from (document, image, template) and a column of
scores for each method.

    from interp.studies import statistics

    table = statistics.paired(scores, baseline="full")
    print(*table["sentence"], sep="\\n")

Which method, why, and what was simulated: `docs/statistics.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.discovery import fetching

if TYPE_CHECKING:
    from interp.studies.statistics.clusters import ClusteredMean, clustered_mean
    from interp.studies.statistics.controls import against_random, false_alarms, same_twice
    from interp.studies.statistics.differences import paired
    from interp.studies.statistics.families import corrected
    from interp.studies.statistics.fronts import pareto
    from interp.studies.statistics.margins import equivalence
    from interp.studies.statistics.power import detectable
    from interp.studies.statistics.stability import rank_stability
    from interp.studies.statistics.ties import tie_groups
    from interp.studies.statistics.wilson import proportions

_HOME = "interp.studies.statistics"
_WHERE = {
    "ClusteredMean": f"{_HOME}.clusters",
    "against_random": f"{_HOME}.controls",
    "clustered_mean": f"{_HOME}.clusters",
    "corrected": f"{_HOME}.families",
    "detectable": f"{_HOME}.power",
    "equivalence": f"{_HOME}.margins",
    "false_alarms": f"{_HOME}.controls",
    "paired": f"{_HOME}.differences",
    "pareto": f"{_HOME}.fronts",
    "proportions": f"{_HOME}.wilson",
    "rank_stability": f"{_HOME}.stability",
    "same_twice": f"{_HOME}.controls",
    "tie_groups": f"{_HOME}.ties",
}
__all__ = [
    "ClusteredMean",
    "against_random",
    "clustered_mean",
    "corrected",
    "detectable",
    "equivalence",
    "false_alarms",
    "paired",
    "pareto",
    "proportions",
    "rank_stability",
    "same_twice",
    "tie_groups",
]

__getattr__ = fetching(__name__, _WHERE)
