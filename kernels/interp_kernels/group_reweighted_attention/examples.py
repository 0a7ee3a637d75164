"""Calls of group_reweighted_attention that every path should answer alike, in both of its forms."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import group_reweighted_attention


def examples(draw: Draw, n: int) -> Iterator[Example]:
    q, k, v = draw(2, n, draw.size), draw(1, n + 3, draw.size), draw(1, n + 3, 5)
    factors = draw.even(2, n, 3)
    factors[..., 0] = 0.0
    facts = draw.facts(2, n, n + 3)
    for form in ("one_pass", "two_pass"):
        yield Example(group_reweighted_attention, (q, k, v, draw.integers(3, n + 3), factors), {"form": form, **facts})
