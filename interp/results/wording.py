"""Sentences about numbers that may not be there, or have nothing beside them to be compared with."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from interp.results.naming import heads_named

QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
NO_NUMBER = re.compile(r"(?<![\w-])[-+]?(nan|inf)(?![\w-])", re.IGNORECASE)


def with_numbers(sentences: Iterable[str]) -> list[str]:
    """The sentences whose numbers are numbers, and one that says how many are left out; quoted token text is no
    number."""
    said = list(sentences)
    kept = [sentence for sentence in said if not NO_NUMBER.search(QUOTED.sub("", sentence))]
    if left := len(said) - len(kept):
        kept.append(f"{left} of {len(said)} findings cannot be put into words: their numbers are not defined here.")
    return kept


def among(values: np.ndarray, what: str) -> str:
    """' (in 29 of 30 layers, the others have none)' where some of the values are NaN, '' where none is."""
    known = int(np.isfinite(values).sum())
    return "" if known == values.size else f" (in {known} of {values.size} {what}, the others have none)"


def extremes(values: np.ndarray, layers: Iterable[int]) -> str:
    """'from 1 in layer 0 head 2 to 5 in layer 3 head 1' of `values [layer, head]`, or that all are alike."""
    low, high = (f"{x:.3g}" for x in (np.nanmin(values), np.nanmax(values)))
    if low == high:
        return "the same in every head" if np.isfinite(values).sum() > 1 else "in the one head that has it"
    lowest, highest = (heads_named(values == x, layers) for x in (np.nanmin(values), np.nanmax(values)))
    return f"from {low} in {lowest} to {high} in {highest}"
