"""What the items of a result add up to: a table with intervals, and sentences. The one place that computes either."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.discovery import unknown
from interp.errors import InterpError
from interp.results.wording import with_numbers
from interp.tasks.base import Task
from interp.tasks.catalogue import available
from interp.tasks.metrics import Estimate, Metric, estimate

if TYPE_CHECKING:
    import xarray as xr

MOST_VALUES = 40
"""Of a facet; one with more is no way to sort a table."""


def task_of(result: xr.Dataset) -> type[Task]:
    """The task that made a result. Raises InterpError for a dataset that is none's."""
    name = result.attrs.get("task")
    if not isinstance(name, str) or "item" not in result.dims:
        raise InterpError("this dataset is no result of a task: pass what interp.evaluate returned.")
    if name not in available():
        raise unknown("task", name, available())
    return available()[name]


def table_of(result: xr.Dataset) -> pd.DataFrame:
    """One row an item: scores, `answer`, `prompt`, `expected`, `noted`, `cluster` and facets. Raises as `task_of`, and
    InterpError where a score is missing."""
    task = task_of(result)
    if missing := [name for name in (*task.scores, "cluster") if name not in result.variables]:
        raise InterpError(f"this result of {task.name} lacks {', '.join(missing)}; evaluate it anew.")
    return result.to_dataframe()


def summary(result: xr.Dataset, by: Sequence[str] | None = None) -> pd.DataFrame:
    """The metrics of a task over all items, and over those of each value of its facets.

    Args:
        result: from `interp.evaluate`.
        by: facets, names of coordinates along `item`; None: those that the task sorts by.

    Columns: `facet` and `value` (empty: all items), `measure`, `estimate`, `low`, `high` (95 %; see
    `interp.tasks.metrics.estimate`), `items`, `clusters`, `effective` (as how many independent items they tell).

    Examples:
        >>> result = interp.evaluate(lens, "windowed_perplexity:context=20,scored=5", items=3)
        >>> rows = interp.tasks.summary(result)
        >>> list(rows.columns[:5])
        ['facet', 'value', 'measure', 'estimate', 'low']
    """
    task, table = task_of(result), table_of(result)
    wanted = [name for name in task.by if name in table] if by is None else list(by)
    if missing := [name for name in wanted if name not in table or name not in result.coords]:
        known = json.loads(result.attrs.get("facets", "[]"))
        raise InterpError(f"this result has no facet {missing[0]!r}; it has {', '.join(known) or 'none'}.")
    rows = [_row("", "", name, metric, table) for name, metric in task.metrics.items()]
    for facet in wanted:
        groups = table.groupby(facet, sort=True)
        if len(groups) > MOST_VALUES or len(groups) < 2:
            continue
        rows += [
            _row(facet, str(value), name, metric, part)
            for value, part in groups
            for name, metric in task.metrics.items()
        ]
    return pd.DataFrame(rows)


def _row(facet: str, value: str, name: str, metric: Metric, table: pd.DataFrame) -> dict[str, Any]:
    found: Estimate = estimate(metric, table)
    return {
        "facet": facet, "value": value, "measure": name,
        "estimate": found.value, "low": found.low, "high": found.high,
        "items": len(table), "clusters": table["cluster"].nunique(), "effective": found.effective,
    }  # fmt: skip


def findings(result: xr.Dataset) -> list[str]:
    """Plain sentences computed from a result; right answers are said beside what one answer to all would get."""
    task, table = task_of(result), table_of(result)
    name, metric = next(iter(task.metrics.items()))
    found = estimate(metric, table)
    clusters = table["cluster"].nunique()
    of = f"{len(table)} items from {clusters} {task.clusters}"
    said = [f"{name} is {_shown(found, metric)} ({of})"]
    if (constant := always_the_same(table)) is not None:
        word, share = constant
        said[0] += f'; answering "{word}" to all of them would be right in {share:.1%}'
    said[0] += "."
    silent = int(table["noted"].sum()) if "noted" in table else 0
    if silent:
        notes = json.loads(result.attrs.get("notes", "{}"))
        said.append(f"A warning was given in {silent} of {len(table)} items: {next(iter(notes), 'unknown')}")
    return with_numbers(said)


def _shown(found: Estimate, metric: Metric) -> str:
    how = ".1%" if metric.share else ".4g"
    units = "" if metric.units == "1" else f" {metric.units}"
    if np.isnan(found.low):
        return f"{found.value:{how}}{units}, without an interval, for which one cluster is too few"
    return f"{found.value:{how}}{units}, 95 % interval {found.low:{how}} to {found.high:{how}}"


def always_the_same(table: pd.DataFrame) -> tuple[str, float] | None:
    """The one answer that is right most often, and how often; None where items have not one right answer each."""
    if "correct" not in table or not np.isin(table["correct"].to_numpy(), (0.0, 1.0)).all():
        return None
    right = [json.loads(text) for text in table["expected"]]
    if any(len(one) != 1 for one in right):
        return None
    counts = pd.Series([one[0] for one in right]).value_counts()
    return str(counts.index[0]), float(counts.iloc[0] / len(right))
