"""Slots of a cache that keeps its size: which token goes, and the new one in its place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class StepCall(NamedTuple):
    """The arguments of `decode_step`, checked, with its defaults filled in."""

    q: Tensor
    keys: Tensor
    values: Tensor
    mass: Tensor
    positions: Tensor
    keep_oldest: int
    keep_newest: int
    padding: Tensor | None
    scale: float
    softcap: float | None
    sinks: Tensor | None


class Evicted(NamedTuple):
    """The token of every stored head that went."""

    slot: Tensor
    """[B, Hs] int64: where it was, and where the new token is now."""
    position: Tensor
    """[B, Hs]: where in the text it stands."""
    mass: Tensor
    """[B, Hs]: attention that it had received."""
    key: Tensor
    """[B, Hs, 1, D]."""
    value: Tensor
    """[B, Hs, 1, Dv]."""


def least_attended(
    mass: Tensor, positions: Tensor, keep_oldest: int, keep_newest: int, padding: Tensor | None
) -> Tensor:
    """Slot [B, Hs] of the token that goes, as documented in the package."""
    first = 0 if padding is None else padding[:, None, None]
    newest = positions[..., -1:] - keep_newest
    stays = (positions < first + keep_oldest) | (positions > newest)
    worth = mass.masked_fill(stays, torch.inf).masked_fill(positions < first, -torch.inf)
    equals = worth == worth.amin(-1, keepdim=True)
    return positions.where(equals, -1).argmax(-1)


def replace(slot: Tensor, keys: Tensor, values: Tensor, mass: Tensor, positions: Tensor) -> Evicted:
    """Take out the tokens at `slot` and put those of the last slot there, in place."""
    where = slot[..., None]
    lost = [move(x, where) for x in (positions, mass)]
    lost += [move(x, where[..., None].expand(-1, -1, 1, x.shape[-1])) for x in (keys, values)]
    return Evicted(slot, lost[0][..., 0], lost[1][..., 0], *lost[2:])


def move(x: Tensor, where: Tensor) -> Tensor:
    """Write x's last slot to `where`; what was there is returned."""
    lost = x.gather(2, where)
    x.scatter_(2, where, x[:, :, -1:].clone())
    return lost
