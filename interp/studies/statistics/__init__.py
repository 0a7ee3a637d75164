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
    from interp.studies.statistics.differences import paired
    from interp.studies.statistics.families import corrected
    from interp.studies.statistics.wilson import proportions

_WHERE = {
    "ClusteredMean": "interp.studies.statistics.clusters",
    "clustered_mean": "interp.studies.statistics.clusters",
    "corrected": "interp.studies.statistics.families",
    "paired": "interp.studies.statistics.differences",
    "proportions": "interp.studies.statistics.wilson",
}
__all__ = ["ClusteredMean", "clustered_mean", "corrected", "paired", "proportions"]

__getattr__ = fetching(__name__, _WHERE, {})
