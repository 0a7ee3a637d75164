"""Edits of one stage that meet in a layer: the groups of keys that they make together, and what each may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Generic, TypeVar

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
    of: Int[Tensor, " group"]
    """Its own group of the keys in each group that the edits make together."""
    rows: Bool[Tensor, "batch token"]
    """The rows that it may change, of all tokens so far."""
    positions: Int[Tensor, "batch token"]
    """Where all tokens so far stand in their text; -1 at padding."""
    heads: Bool[Tensor, " head"] | None
    note: Callable[[Tensor], None]
    """Told whether it changed anything, as a bool on the device."""

    def may_change(self, rows: int) -> Bool[Tensor, "batch head_or_1 row 1"]:
        """Of the newest `rows` tokens."""
        newest = self.rows[:, None, -rows:, None]
        return newest if self.heads is None else newest & self.heads[:, None, None]


@dataclass(frozen=True)
class Meeting(Generic[E]):
    """All edits of one stage in one call of a layer; none of them, and all keys are in one group."""

    groups: Int[Tensor, "batch stored_head_or_1 key"]
    count: int
    members: Sequence[Member[E]]


def at_every_row(groups: Int[Tensor, "batch stored_head_or_1 key"], like: Tensor) -> Int[Tensor, "batch head row key"]:
    """The groups of the keys, as an index for the heads and rows of an array `[batch, head, row, _]`."""
    heads, rows = like.shape[1:3]
    return groups.repeat_interleave(heads // groups.shape[1], 1).long()[:, :, None].expand(-1, -1, rows, -1)


def met(known: Sequence[Tensor], counts: Sequence[int], names: str) -> tuple[Tensor, list[Tensor]]:
    """Groups `[batch, token]` that several edits make together, and each edit's own group of the keys in each of them.

    Raises InterpError where they make more than the kernel tells apart.
    """
    if len(known) == 1:
        return known[0].long(), [torch.arange(counts[0], device=known[0].device)]
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
    of: list[Tensor] = []
    for count in reversed(counts):
        of.insert(0, found % count)
        found = found // count
    return together, of
