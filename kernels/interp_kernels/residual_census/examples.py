"""Calls of residual_census that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import residual_census


def examples(draw: Draw, n: int) -> Iterator[Example]:
    yield Example(residual_census, (draw(n, 3 * draw.size), [3, 5]), {"mask": draw.padding(n)})
