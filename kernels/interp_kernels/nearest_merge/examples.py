"""Calls of nearest_key and merge_tokens that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import merge_tokens, nearest_key


def examples(draw: Draw, n: int) -> Iterator[Example]:
    evicted, retained = draw(2, min(n, 9), draw.size), draw(2, n, draw.size)
    tokens = evicted.shape[2]
    yield Example(nearest_key, (evicted, retained))
    yield Example(merge_tokens, (retained, evicted, draw.integers(n, 2, tokens), draw.even(2, tokens)))
