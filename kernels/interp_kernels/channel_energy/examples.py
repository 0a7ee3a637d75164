"""Calls of channel_energy that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import channel_energy


def examples(draw: Draw, n: int) -> Iterator[Example]:
    yield Example(channel_energy, (draw(3, n, draw.size), draw.padding(n)))
