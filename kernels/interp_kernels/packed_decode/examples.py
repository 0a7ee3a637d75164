"""Calls of packed_decode that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import KeySegment, packed_decode


def examples(draw: Draw, n: int) -> Iterator[Example]:
    kept, queries = draw.size // 2, min(n, 3)
    packed = KeySegment(
        draw(2, n, kept), draw(2, n, 5), draw.some(kept, draw.size, 2), bias=draw.even(2, n), offset=draw(2, draw.size)
    )
    newest = KeySegment(draw(2, queries, draw.size), draw(2, queries, 5))
    facts = {"softcap": 4.0, "sinks": draw.even(4)[0]}
    yield Example(packed_decode, (draw(4, queries, draw.size), [packed, newest]), facts, rounds=True)
