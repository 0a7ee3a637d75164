"""What training never sees: pairs of kinds, and wordings. Fixed by a hash, so that it is the same for everyone."""

from __future__ import annotations

import hashlib
from functools import cache

PAIRS = 0.04
"""Share of the pairs of kinds that never lie in one scene of the training."""


@cache
def pair_held_out(one: int, other: int) -> bool:
    """Whether two kinds, by number, are together in held-out scenes only."""
    low, high = sorted((one, other))
    return low != high and _share(f"pair {low} {high}") < PAIRS


def wording_held_out(number: int) -> bool:
    """Whether a wording, by its place among those of its question, is for the evaluation: the last of every four."""
    return number % 4 == 3


def _share(text: str) -> float:
    """A number in [0, 1) that a text always has."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
