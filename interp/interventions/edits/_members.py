"""Edits of one stage that meet in a layer: the groups of keys that they make together, and what each may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeVar

import torch
from interp_kernels.group_reweighted_attention.edit import MOST_GROUPS
from jaxtyping import Bool, Int

from interp.errors import InterpError
from interp.interventions.edits.base import AttentionEdit

Tensor = torch.Tensor
E = TypeVar("E", bound=AttentionEdit)


@dataclass(frozen=True)
class Member(Generic[E]):
    """One edit among those of its stage that meet in a layer."""

    edit: E
    of: Int[Tensor, " group"] | None
    """Its own group of the keys in each group that the edits make together; None: it is the only edit."""
    rows: Bool[Tensor, "batch token"]
    """The rows that it may change, of all tokens so far."""
    free: int
    """Of how many of the newest tokens it is known that it may change them all."""
    positions: Int[Tensor, "batch token"]
    """Where all tokens so far stand in their text; -1 at padding."""
    heads: Bool[Tensor, " head"] | None
    note: Callable[[Tensor], None] | None
    """Told whether it changed anything, as a bool on the device; None: nobody asks."""

    def may_change(self, rows: int) -> Bool[Tensor, "batch_or_1 head_or_1 row_or_1 1"] | None:
        """Of the newest `rows` tokens; None: all heads of all of them."""
        if rows <= self.free:
            return None if self.heads is None else self.heads[None, :, None, None]
        newest = self.rows[:, None, -rows:, None]
        return newest if self.heads is None else newest & self.heads[:, None, None]


@dataclass(frozen=True)
class Meeting(Generic[E]):
    """All edits of one stage in one call of a layer; none of them, and keys have no groups that anybody asks for."""

    groups: Int[Tensor, "batch stored_head_or_1 key"]
    count: int
    members: Sequence[Member[E]]


NONE: Meeting[Any] = Meeting(torch.zeros(1, 1, 1, dtype=torch.uint8), 1, ())


def at_every_row(groups: Int[Tensor, "batch stored_head_or_1 key"], like: Tensor) -> Int[Tensor, "batch head row key"]:
    """The groups of the keys, as an index for the heads and rows of an array `[batch, head, row, _]`."""
    heads, rows = like.shape[1:3]
    return groups.repeat_interleave(heads // groups.shape[1], 1).long()[:, :, None].expand(-1, -1, rows, -1)


def met(known: Sequence[Tensor], counts: Sequence[int], names: str) -> tuple[Tensor, int, list[Tensor | None]]:
    """Groups `[batch, token]` that several edits make together, how many they are, and each edit's own group of the
    keys in each of them; None of one edit alone.

    Raises InterpError where they make more than the kernel tells apart.
    """
    if len(known) == 1:
        return known[0], counts[0], [None]
    together = torch.zeros_like(known[0], dtype=torch.long)
    for groups, count in zip(known, counts, strict=True):
        together = together * count + groups
    found = torch.arange(prod(counts), device=together.device)
    if len(found) > MOST_GROUPS:  # not all of them need occur
        found, together = torch.unique(together, return_inverse=True)
    if len(found) > MOST_GROUPS:
        raise InterpError(
            f"{names}: where these edits meet they sort keys into {len(found)} groups, and at most {MOST_GROUPS} can "
            "be told apart; give them fewer tokens, or layers of their own."
        )
    of: list[Tensor | None] = []
    rest = found
    for count in reversed(counts):
        of.insert(0, rest % count)
        rest = rest // count
    return together, len(found), of
