"""What becomes of an evicted token: it goes into the most similar retained one, if the caller finds it similar enough.

Only one row of keys and one of values changes, in place, whatever the size of the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..nearest_merge import merge_tokens, nearest_key
from .slots import Evicted


class Merge(NamedTuple):
    """How an evicted token is merged. The arithmetic is that of `merge_tokens`."""

    decide: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
    """(similarity, real), both [B, Hs, 1] -> (merged, weight, counted) as `merge_tokens` takes them. `real` is False
    for padding and where nothing else is retained; there nothing is merged, whatever `decide` says. A threshold that
    follows the similarities, as D2O's does, lives with the caller."""
    own: float = 1.0
    """The retained token's own weight, above 0."""
    keys: bool = True
    """Whether keys are merged, or values only."""


class Merged(NamedTuple):
    """What a merge did, for every stored head."""

    target: Tensor
    """[B, Hs] int64: slot of the most similar retained key, the new token's included; -1 where there is none."""
    similarity: Tensor
    """[B, Hs]: its cosine; -inf where there is none."""
    merged: Tensor
    """Bool [B, Hs]: whether the evicted token was merged into it."""


def absorb(
    merge: Merge, evicted: Evicted, keys: Tensor, values: Tensor, positions: Tensor, padding: Tensor | None
) -> Merged:
    """Merge the evicted tokens into slots 0 .. n - 2 of keys and values, in place."""
    masks: tuple[Tensor | None, Tensor | None] = (None, None)
    if padding is not None:
        first = padding[:, None, None]
        masks = evicted.position[..., None] >= first, positions[:, :, :-1] >= first
    target, similarity = nearest_key(evicted.key, keys[:, :, :-1], *masks)
    real = target >= 0
    merged, weight, counted = merge.decide(similarity, real)
    merged = merged & real
    for x, lost in ((values, evicted.value), (keys, evicted.key))[: 1 + merge.keys]:
        row = target.clamp(min=0)[..., None].expand(-1, -1, 1, x.shape[-1])
        alone = torch.zeros_like(target)  # the place of the target among one row
        new = merge_tokens(x.gather(2, row), lost, alone, weight, counted=counted, own=merge.own, merged=merged)
        x.scatter_(2, row, new)
    return Merged(target[..., 0], similarity[..., 0], merged[..., 0])
