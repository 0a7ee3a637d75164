"""Calls of channel_gram that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import channel_gram


def examples(draw: Draw, n: int) -> Iterator[Example]:
    yield Example(channel_gram, (draw(4, n, draw.size) / 8, draw.padding(n)), {"heads": 2})
