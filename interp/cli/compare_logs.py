"""`interp compare-logs A B`: the statistics of studies on per-sample logs of other harnesses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.terminal import at_home, command_line, printable
from interp.errors import InterpError

if TYPE_CHECKING:
    import pandas as pd

    from interp.studies.statistics.differences import Better


def compare_logs(
    a: Annotated[Path, typer.Argument(help="the baseline's log", callback=at_home)],
    b: Annotated[Path, typer.Argument(help="the log that is compared with it", callback=at_home)],
    metric: Annotated[str | None, typer.Option("--metric", help="which score; without it the only one")] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="field that alike samples share, as in article_id or meta.image"),
    ] = None,
    margin: Annotated[
        float | None, typer.Option("--margin", help="the loss that would not matter: test for no loss of as much")
    ] = None,
    better: Annotated[str, typer.Option("--better", help="which score is better: higher or lower")] = "higher",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Compare two logs of lm-evaluation-harness (samples_*.jsonl) or inspect_ai (.eval, .json), sample by sample.

    Says the paired difference with an interval that knows clusters, whether it is shown, and what could have been.
    """
    if better not in ("higher", "lower"):
        raise InterpError(f"--better is higher or lower, not {better!r}.")
    direction: Better = "higher" if better == "higher" else "lower"
    from interp.studies import statistics
    from interp.studies.logs import matched, read_log

    first, second = read_log(a, cluster), read_log(b, cluster)
    scores, metric, notes = matched(first, second, metric)
    one, two = (name for name in scores.columns if name not in ("item", "cluster"))
    tables = {"difference": statistics.paired(scores, one, better=direction)}
    if scores[[one, two]].dropna().isin((0.0, 1.0)).all(axis=None):
        tables["shares"] = statistics.proportions(scores, [one, two])
    if margin is not None:
        tables["no_loss"] = statistics.equivalence(scores, one, margin, better=direction)
    clusters = first.cluster or "none: each sample is its own"
    if as_json:
        about = {"command": command_line(), "harness": first.harness, "metric": metric, "cluster": clusters}
        print(json.dumps({"run": about, **{k: rows(t) for k, t in tables.items()}, "notes": notes}))
        return
    print(printable(f"{metric}, logs of {first.harness}, clusters: {clusters}"))
    print("\n" + "\n".join(printable(line) for line in _table(tables["difference"], one, two)))
    for table in tables.values():
        print("\n" + "\n".join(f"  - {printable(sentence)}" for sentence in table["sentence"]))
    if notes:
        print("\n" + "\n".join(f"note: {printable(note)}" for note in notes))


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON has them: no NaN, which JSON lacks, but null."""
    records = json.loads(table.to_json(orient="records", double_precision=15))
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in records
    ]


def _table(table: pd.DataFrame, one: str, two: str) -> list[str]:
    row = table.iloc[0]
    width = max(len(printable(name)) for name in (one, two, "difference"))
    interval = "" if math.isnan(row["low"]) else f"   {row['low']:+.4g} to {row['high']:+.4g} ({row['confidence']:.0%})"
    return [
        f"{one:{width}}  {row['baseline_mean']:10.4g}",
        f"{two:{width}}  {row['mean']:10.4g}",
        f"{'difference':{width}}  {row['difference']:+10.4g}{interval}",
    ]
