"""`samples_<task>_<time>.jsonl` of lm-evaluation-harness (`--log_samples`): an object a line.

Read of each line: `doc_id`; the scores, which stand beside it under their metric's name and are listed in `metrics`
where the version writes that; `filter`, since an answer has a line for each filter; and `doc_hash` with `target_hash`,
or `doc` and `target` where there are none, which tell whether two logs asked the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.errors import StorageError
from interp.studies.logs.samples import Log, Sample, as_number, checksum, looked_up, parsed

BESIDE = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash", "idx", "task_name", "sample_len",
}  # fmt: skip
"""What stands beside the scores."""


def of_text(text: str, path: str, cluster: str | None) -> Log:
    """The log in the text of a file. Raises StorageError for what is no such log."""
    samples: dict[str, Sample] = {}
    filters: dict[str, set[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        row = parsed(line, where)
        if not isinstance(row, dict) or not isinstance(row.get("doc_id"), (int, str)):
            raise StorageError(f"{where} is no sample of lm-evaluation-harness: it is no object with a doc_id.")
        key, kind = str(row["doc_id"]), str(row.get("filter") or "none")
        sample = samples.setdefault(key, Sample(question=_question(row)))
        if kind in filters.setdefault(key, set()):
            raise StorageError(f"{where} has the doc_id {row['doc_id']} again; log each task to a file of its own.")
        filters[key].add(kind)
        sample.scores |= {f"{name},{kind}": value for name, value in _scores(row).items()}
        if cluster is not None:
            sample.cluster = looked_up([row.get("doc"), row], cluster, path, key)
    if not samples:
        raise StorageError(f"{path} has no samples; run the harness with --log_samples.")
    _shorten(samples)
    return Log(path, "lm-evaluation-harness", samples, cluster or "")


def _question(row: Mapping[str, Any]) -> str:
    hashes = [row.get(name) for name in ("doc_hash", "target_hash")]
    if all(hashes):
        return checksum(hashes)
    return checksum([row["doc"], row.get("target")]) if row.get("doc") is not None else ""


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are one number; sums and pairs from which a corpus-level metric is made are none."""
    listed = row.get("metrics")
    names = listed if isinstance(listed, list) else [name for name in row if name not in BESIDE]
    known = {str(name): row.get(name) for name in names if isinstance(name, str)}
    numbers = {name: as_number(value) for name, value in known.items() if isinstance(value, (bool, int, float))}
    return {name: number for name, number in numbers.items() if number is not None}


def _shorten(samples: dict[str, Sample]) -> None:
    """With one filter alone, a metric's name is enough."""
    kinds = {name.rpartition(",")[2] for sample in samples.values() for name in sample.scores}
    if len(kinds) == 1:
        for sample in samples.values():
            sample.scores = {name.rpartition(",")[0]: value for name, value in sample.scores.items()}
