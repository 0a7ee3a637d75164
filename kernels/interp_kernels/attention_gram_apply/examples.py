"""Calls of attention_gram_apply that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import attention_gram_apply


def examples(draw: Draw, n: int) -> Iterator[Example]:
    q, k, x = draw(2, n, draw.size), draw(1, n + 3, draw.size), draw(2, n + 3, 5)
    yield Example(attention_gram_apply, (q, k, 3 + draw.even(2, n), x), draw.facts(2, n, n + 3))
