"""A log, opened as what its name and its first bytes say."""

from __future__ import annotations

from pathlib import Path

from interp.errors import StorageError
from interp.files.reading import read_bytes, read_text
from interp.studies.logs import inspect_ai, lm_eval
from interp.studies.logs.samples import Log

MOST_BYTES = 500_000_000
"""Of a file."""


def read_log(path: str | Path, cluster: str | None = None) -> Log:
    """The log of another harness, by the end of its name: `.jsonl`, `.eval` or `.json`.

    cluster: a field whose value items share that are alike, dots leading inwards: of an lm-evaluation-harness sample's
        `doc` or the sample itself, of an inspect_ai sample's `metadata` or its summary.

    Raises StorageError for a file that is not there or too large, and for what is no such log.
    """
    end = Path(path).suffix.lower()
    if end == ".eval":
        return inspect_ai.of_zip(read_bytes(path, "log", StorageError, MOST_BYTES), str(path), cluster)
    if end == ".json":
        return inspect_ai.of_json(read_text(path, "log", StorageError, MOST_BYTES), str(path), cluster)
    if end == ".jsonl":
        return lm_eval.of_text(read_text(path, "log", StorageError, MOST_BYTES), str(path), cluster)
    raise StorageError(
        f"{path} is no log that is known: name a samples_*.jsonl of lm-evaluation-harness, or a .eval or .json of "
        "inspect_ai."
    )
