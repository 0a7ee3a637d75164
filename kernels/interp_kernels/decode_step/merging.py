"""What becomes of an evicted token: it goes into the most similar retained one, if the caller finds it similar enough.

Only one row of keys and one of values changes, in place, whatever the size of the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import accumulator, expect_bool, expect_float, expect_shape
from ..nearest_merge import nearest_key
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
    merged, weight, counted = checked(real, *merge.decide(similarity, real))
    row = target.clamp(min=0)[..., None]
    rows = []
    for x, lost in ((values, evicted.value), (keys, evicted.key))[: 1 + merge.keys]:
        where = row.expand(-1, -1, 1, x.shape[-1])
        old = x.gather(2, where)
        wide = accumulator(x)
        mean = (merge.own * old.to(wide) + weight.to(wide) * lost.to(wide)) / (merge.own + counted.to(wide))
        rows.append((x, where, torch.where(merged, mean.to(x.dtype), old)))
    for x, where, new in rows:  # both are made before one is written: values may be a view of keys
        x.scatter_(2, where, new)
    return Merged(target[..., 0], similarity[..., 0], merged[..., 0, 0])


def checked(real: Tensor, merged: Tensor, weight: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(merged, weight, counted) [B, Hs, 1, 1] of what a merge decided."""
    counted = weight if counted is None else counted
    expect_bool("decode_step", merged=merged)
    expect_float("decode_step", weight=weight, counted=counted)
    sizes = {"B": (real.shape[0],), "Hs": (real.shape[1],), "E": (1,)}
    for name, tensor in (("merged", merged), ("weight", weight), ("counted", counted)):
        expect_shape("decode_step", name, tensor, "B Hs E", sizes)
    return (merged & real)[..., None], weight[..., None], counted[..., None]
