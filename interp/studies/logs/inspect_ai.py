"""Logs of inspect_ai: `.eval`, a zip of JSON files, and `.json`, the same in one file.

Of a `.eval` only the summaries are read (`summaries.json`, or `_journal/summaries/*.json` of a run that did not end):
id, epoch, input, target, metadata and the scores' values of every sample, which are small, and not the transcripts,
which are not. Epochs of one sample are one cluster unless a field says otherwise.
"""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from interp.errors import StorageError
from interp.studies.logs.samples import Log, Sample, as_number, checksum, looked_up, parsed, shown

SUMMARIES, JOURNAL = "summaries.json", "_journal/summaries/"
MOST_ENTRIES = 500_000
MOST_BYTES = 500_000_000
"""Of all that is unpacked of one log."""
ENTRY = b"PK\x01\x02"  # begins every entry of a zip's directory
STORED_KINDS = {0: "stored", 8: "deflated", 93: "Zstandard"}
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""What inspect_ai's metrics make of correct, partial, incorrect and no answer."""
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


def of_zip(data: bytes, path: str, cluster: str | None) -> Log:
    """The log in the bytes of a `.eval` file. Raises StorageError for what is no such log, or unpacks to too much."""
    if data.count(ENTRY) > MOST_ENTRIES:
        raise StorageError(f"{path} has more than {MOST_ENTRIES:,} files in it, and is not read.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            parts = [SUMMARIES] if SUMMARIES in names else sorted(n for n in names if n.startswith(JOURNAL))
            left, summaries = MOST_BYTES, []
            for name in parts:
                content = _unpacked(archive, name, path, left)
                left -= len(content)
                summaries.append(parsed(_text(content, name, path), f"{shown(name)} in {path}"))
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} is no .eval log, or a damaged one: {' '.join(str(error).split())[:80]}.") from None
    if not summaries:
        raise StorageError(f"{path} has no summaries of samples in it; it is no .eval log of a run that got so far.")
    if not all(isinstance(part, list) for part in summaries):
        raise StorageError(f"the summaries in {path} are no list of samples.")
    return _log([row for part in summaries for row in part], path, cluster)


def of_json(text: str, path: str, cluster: str | None) -> Log:
    """The log in the text of a `.json` file. Raises StorageError for what is no such log."""
    content = parsed(text, path)
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        raise StorageError(f"{path} is no log of inspect_ai with samples.")
    return _log(samples, path, cluster)


def _unpacked(archive: zipfile.ZipFile, name: str, path: str, most: int) -> bytes:
    entry = archive.getinfo(name)
    if entry.flag_bits & 1:
        raise StorageError(f"{path} is encrypted; unpack it and pack it again without a password.")
    if entry.compress_type not in STORED_KINDS:
        raise StorageError(f"{path} is compressed in a way that no .eval log is (method {entry.compress_type}).")
    try:
        with archive.open(entry) as file:
            content = file.read(most + 1)
    except NotImplementedError:
        raise StorageError(
            f"{path} is compressed with Zstandard, which Python reads from 3.14 on; use that, or convert it first: "
            "inspect log convert --to json."
        ) from None
    if len(content) > most:
        raise StorageError(f"{path} unpacks to more than {MOST_BYTES:,} bytes of summaries, and is not read.")
    return content


def _text(content: bytes, name: str, path: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise StorageError(f"{shown(name)} in {path} is not UTF-8.") from None


def _log(rows: Iterable[Any], path: str, cluster: str | None) -> Log:
    samples: dict[str, Sample] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("id"), (int, str)):
            raise StorageError(f"{path}: a sample has no id.")
        epoch = row.get("epoch", 1)
        if not isinstance(epoch, int):
            raise StorageError(f"{path}: sample {shown(row['id'])} has an epoch that is no number.")
        key = f"{row['id']} (epoch {epoch})"
        if key in samples:
            raise StorageError(f"{path} has the sample {shown(row['id'])} twice in epoch {epoch}.")
        own = str(row["id"]) if cluster is None else looked_up([row.get("metadata"), row], cluster, path, shown(key))
        asked = [row.get("input"), row.get("target")]
        question = checksum(asked) if isinstance(asked[0], str) else ""  # messages have ids that differ from run to run
        samples[key] = Sample(_scores(row.get("scores")), own, question)
    if not samples:
        raise StorageError(f"{path} has no samples.")
    return Log(path, "inspect_ai", samples, cluster or "sample, with all its epochs")


def _scores(scores: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for scorer, score in scores.items() if isinstance(scores, dict) else ():
        value = score.get("value") if isinstance(score, dict) else None
        several = {f"{scorer}.{name}": one for name, one in value.items()} if isinstance(value, Mapping) else None
        for name, one in (several or {str(scorer): value}).items():
            number = _number(one)
            if number is not None:
                found[str(name)] = number
    return found


def _number(value: Any) -> float | None:
    """As inspect_ai's metrics take it; None for what they would count as 0 with a warning."""
    if isinstance(value, (bool, int, float)):
        return None if value != value else as_number(value)  # NaN: not scored
    if not isinstance(value, str):
        return None
    if value in GRADES:
        return GRADES[value]
    if value.lower() in WORDS:
        return WORDS[value.lower()]
    try:
        return float(value)
    except ValueError:
        return None
