"""What is kept of a log: for each sample its scores, its cluster, and what tells that it is the same question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp.errors import StorageError

SHOWN = 60
"""Characters of a text of a log that a message quotes."""


@dataclass
class Sample:
    """One answer of a model, as a log has it."""

    scores: dict[str, float] = field(default_factory=dict)
    cluster: str | None = None
    """What it shares with others: the value of the field that was asked for, or what the harness makes shared."""
    question: str = ""
    """A checksum of what was asked and what would be right; empty where the log does not say."""


@dataclass(frozen=True)
class Log:
    """The samples of one log, by their id as it is shown."""

    name: str
    harness: str
    samples: dict[str, Sample]
    cluster: str
    """What a cluster is, in words."""


def checksum(content: Any) -> str:
    """Of JSON content, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def shown(text: Any) -> str:
    """A text of a log as a message quotes it: short, one line."""
    said = " ".join(str(text).split())
    return repr(said if len(said) <= SHOWN else f"{said[:SHOWN]}...")


def looked_up(places: list[Any], name: str, path: str, sample: str) -> str:
    """The value of a field, dots leading inwards, in the first of `places` that has it.

    Raises StorageError if none has it, and if it is no text, number or truth value.
    """
    for place in places:
        found, there = place, True
        for part in name.split("."):
            there = isinstance(found, Mapping) and part in found
            if not there:
                break
            found = found[part]
        if there and found is not None:
            if isinstance(found, (Mapping, list)):
                told = f"the field {name!r} of sample {sample} holds several values; name one in it"
                raise StorageError(f"{path}: {told}.")
            return str(found)
    known = sorted({str(key)[:40] for place in places if isinstance(place, Mapping) for key in place})[:20]
    told = f"sample {sample} has no field {name!r} to cluster by; it has {', '.join(known) or 'none'}"
    raise StorageError(f"{path}: {told}.")


def as_number(value: bool | float) -> float | None:
    """A float; None for a whole number too large to be one."""
    try:
        return float(value)
    except OverflowError:
        return None


def parsed(text: str, where: str) -> Any:
    """JSON, or StorageError: damaged, nested too deep, or with a number too long to be one."""
    try:
        return json.loads(text)
    except RecursionError:
        raise StorageError(f"{where} is nested too deeply to be a log.") from None
    except ValueError as error:
        raise StorageError(f"{where} is no JSON: {' '.join(str(error).split())[:80]}.") from None
