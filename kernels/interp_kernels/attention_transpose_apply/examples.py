"""Calls of attention_transpose_apply that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import attention_transpose_apply


def examples(draw: Draw, n: int) -> Iterator[Example]:
    q, k, y = draw(4, n, draw.size), draw(2, n + 3, draw.size), draw(4, n, 5)
    yield Example(attention_transpose_apply, (q, k, 3 + draw.even(4, n), y), draw.facts(4, n, n + 3))
