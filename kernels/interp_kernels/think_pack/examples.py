"""Calls of think_pack that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import think_pack


def examples(draw: Draw, n: int) -> Iterator[Example]:
    yield Example(think_pack, (draw(3, n, draw.size), draw.some(draw.size // 2, draw.size, 3)))
