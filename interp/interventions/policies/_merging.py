"""Merging evicted tokens into retained ones: who is nearest, and how the two are averaged.

Tensors `[batch, head, token, channel]`; E evicted and R retained tokens. A merge is a weighted mean of the target and
all tokens merged into it. With u the cosine of two keys, the weights of (target, merged token) before division are

* "code" (D2O's release): 1 and u, divided by 1 + the number merged: weights sum to less than 1 and norms shrink;
* "paper" (D2O, equations 11 and 12): e and exp(u), divided by their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from interp_kernels import Merge, Merged, merge_tokens, nearest_key
from jaxtyping import Float, Int

from interp.cache.segments import Segment

Tensor = torch.Tensor
Weights = Literal["paper", "code"]


def own_weight(weights: Weights, centre: float) -> float:
    """Weight of a target. centre: that with "paper", e = exp(1) as its similarity to itself is 1 (a port uses 0.1)."""
    return centre if weights == "paper" else 1.0


def factors(similarity: Float[Tensor, "batch head E"], weights: Weights) -> tuple[Tensor, Tensor | None]:
    """(weight, share of the divisor) `[batch, head, E]` of evicted tokens, as `merge_tokens` takes them; None: the
    weight is that share."""
    return (similarity.exp(), None) if weights == "paper" else (similarity, torch.ones_like(similarity))


def merge_into(
    retained: Sequence[Segment], lost: Segment, merge: Merge, padding: Int[Tensor, " batch"] | None
) -> Merged:
    """Merge evicted tokens, which are dense, into the most similar retained ones, in place, as `decode_step` does with
    one of each head.

    Returns places and outcomes `[batch, head, E]`; places count through all of `retained`, and are -1 where there is
    nothing similar, as for padding.
    """
    d_head, d_value = lost.keys.shape[-1], lost.values.shape[-1]
    keys = torch.cat([segment.dense_keys(d_head) for segment in retained], 2)
    masks: tuple[Tensor | None, Tensor | None] = (None, None)
    if padding is not None:
        first = padding[:, None, None]
        masks = places([lost]) >= first, places(retained) >= first
    target, similarity = nearest_key(lost.keys, keys, *masks)
    real = target >= 0
    gate, weight, counted = merge.decide(similarity, real)
    gate = gate & real
    lengths = [len(segment) for segment in retained]

    def after(x: Tensor, lost: Tensor) -> tuple[Tensor, ...]:
        new = merge_tokens(x, lost, target, weight, counted=counted, own=merge.own, merged=gate)
        return torch.split(new, lengths, 2)

    values = torch.cat([segment.dense_values(d_value) for segment in retained], 2)
    for segment, part in zip(retained, after(values, lost.values), strict=True):
        segment.write_values(part)
    if merge.keys:
        for segment, part in zip(retained, after(keys, lost.keys), strict=True):
            segment.write_keys(part)
    return Merged(target, similarity, gate)


def places(segments: Sequence[Segment]) -> Int[Tensor, "batch head token"]:
    """Positions of the tokens of several segments, one after the other."""
    return torch.cat([segment.at().expand(segment.keys.shape[:3]) for segment in segments], 2)
