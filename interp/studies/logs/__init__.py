"""Per-sample logs of other harnesses: lm-evaluation-harness (`samples_*.jsonl`) and inspect_ai (`.eval`, `.json`).

    from interp.studies.logs import matched, read_log

    a, b = read_log("a/samples_gsm8k.jsonl"), read_log("b/samples_gsm8k.jsonl")
    scores, metric, notes = matched(a, b, metric="exact_match")

`scores` is a table that `interp.studies.statistics` takes. What is read is untrusted: sizes are bounded, nothing in a
log is run, and what is damaged is one sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.discovery import fetching

if TYPE_CHECKING:
    from interp.studies.logs.matching import matched
    from interp.studies.logs.opening import read_log
    from interp.studies.logs.samples import Log, Sample

_HOME = "interp.studies.logs"
_WHERE = {
    "Log": f"{_HOME}.samples",
    "Sample": f"{_HOME}.samples",
    "matched": f"{_HOME}.matching",
    "read_log": f"{_HOME}.opening",
}
__all__ = ["Log", "Sample", "matched", "read_log"]

__getattr__ = fetching(__name__, _WHERE)
