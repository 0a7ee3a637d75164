"""Calls of group_reweighted_attention that every path should answer alike, in both of its forms."""

from __future__ import annotations

from collections.abc import Iterator

from ..operations import Draw, Example
from . import group_reweighted_attention


def examples(draw: Draw, n: int) -> Iterator[Example]:
    k, v, groups = draw(1, n + 3, draw.size), draw(1, n + 3, 5), draw.integers(3, n + 3)
    for form, queries in (("one_pass", min(n, 9)), ("two_pass", n)):
        q, factors = draw(2, queries, draw.size), draw.even(2, queries, 3)
        factors[..., 0] = 0.0
        facts = draw.facts(2, queries, n + 3)
        yield Example(group_reweighted_attention, (q, k, v, groups, factors), {"form": form, **facts})
