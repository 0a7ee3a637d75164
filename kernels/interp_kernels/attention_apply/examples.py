"""Calls of attention_apply that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import STATISTICS, attention_apply


def examples(draw: Draw, n: int) -> Iterator[Example]:
    q, k, v = draw(4, n, draw.size), draw(2, n + 3, draw.size), draw(2, n + 3, 5)
    yield Example(attention_apply, (q, k, v), {"statistics": STATISTICS, **draw.facts(4, n, n + 3)})
