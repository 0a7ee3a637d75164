"""The samples that two logs have in common, as one table of scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from interp.errors import InterpError
from interp.studies.logs.samples import Log, shown

NAMED = 5
"""Ids that a note names."""


def matched(a: Log, b: Log, metric: str | None = None) -> tuple[pd.DataFrame, str, list[str]]:
    """The scores of the samples that both logs have, the metric, and what was left out and assumed, in sentences.

    metric: which score; None: the only one that both have.

    The table has the columns `item`, `cluster` and one for each log, under its name: the shortest end of its path that
    tells them apart. Samples of which the logs say that different things were asked are left out.

    Raises InterpError for logs of different harnesses, without a sample or a metric in common, and where several
    metrics could be meant.
    """
    if a.harness != b.harness:
        raise InterpError(f"{a.name} is of {a.harness} and {b.name} of {b.harness}; compare logs of one harness.")
    metric = _metric(a, b, metric)
    notes = [_missing(one, other) for one, other in ((a, b), (b, a))]
    both = [key for key in a.samples if key in b.samples]
    pairs = {key: (a.samples[key].question, b.samples[key].question) for key in both}
    other = [key for key, (one, two) in pairs.items() if one and two and one != two]
    if other:
        notes.append(
            f"{len(other):,} samples have the same id but ask something else, and are left out: {_listed(other)}."
        )
    if any(not (one and two) for one, two in pairs.values()):
        notes.append("Some samples do not say what was asked; they are matched by their id alone.")
    same = [key for key in both if key not in set(other)]
    if not same:
        raise InterpError(f"{a.name} and {b.name} have no sample in common; are they of the same task?")
    torn = [key for key in same if a.samples[key].cluster != b.samples[key].cluster]
    if torn:
        raise InterpError(f"the logs put sample {shown(torn[0])} into different clusters; name another field.")
    names = _names(a.name, b.name)
    table = pd.DataFrame({
        "item": same,
        "cluster": [a.samples[key].cluster if a.samples[key].cluster is not None else key for key in same],
        names[0]: [a.samples[key].scores.get(metric, np.nan) for key in same],
        names[1]: [b.samples[key].scores.get(metric, np.nan) for key in same],
    })  # fmt: skip
    if table[list(names)].dropna().empty:
        raise InterpError(f"no sample has the metric {metric!r} in both logs.")
    if not a.cluster:
        notes.append(
            "Every sample counts as its own cluster. If several share a document, an image or a template, name the "
            "field that says so: the interval is too narrow else."
        )
    return table, metric, [note for note in notes if note]


def _metric(a: Log, b: Log, asked: str | None) -> str:
    known = [{name for sample in log.samples.values() for name in sample.scores} for log in (a, b)]
    shared = sorted(known[0] & known[1])
    if asked is not None:
        if asked in shared:
            return asked
        lacking = a.name if asked not in known[0] else b.name
        raise InterpError(f"{lacking} has no metric {shown(asked)}; both have {_listed(shared, 20) or 'none'}.")
    if len(shared) == 1:
        return shared[0]
    if not shared:
        raise InterpError(f"{a.name} and {b.name} have no metric in common that is one number a sample.")
    raise InterpError(f"both logs have several metrics; name one with --metric: {_listed(shared, 20)}.")


def _missing(log: Log, other: Log) -> str:
    lacking = [key for key in other.samples if key not in log.samples]
    if not lacking:
        return ""
    return f"{len(lacking):,} samples of {other.name} are not in {log.name}, and are left out: {_listed(lacking)}."


def _listed(names: list[str], most: int = NAMED) -> str:
    named = ", ".join(" ".join(name.split())[:60] for name in names[:most])
    return named + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _names(a: str, b: str) -> tuple[str, str]:
    """The shortest ends of two paths that differ; A and B for two paths that are one."""
    one, two = Path(a).parts, Path(b).parts
    for length in range(1, max(len(one), len(two)) + 1):
        ends = "/".join(one[-length:]), "/".join(two[-length:])
        if ends[0] != ends[1] and not {"item", "cluster"} & set(ends):
            return ends
    return f"A: {a}", f"B: {b}"
