"""Merging evicted tokens into retained ones: who is nearest, and how the two are averaged.

Tensors `[batch, head, token, channel]`; E evicted and R retained tokens. A merge is a weighted mean of the target and
all tokens merged into it. With u the cosine of two keys, the weights of (target, merged token) before division are

* "code" (D2O's release): 1 and u, divided by 1 + the number merged: weights sum to less than 1 and norms shrink;
* "paper" (D2O, equations 11 and 12): e and exp(u), divided by their sum.
"""

from __future__ import annotations

from typing import Literal

import torch
from interp_kernels import merge_tokens, nearest_key
from jaxtyping import Bool, Float, Int

Tensor = torch.Tensor
Weights = Literal["paper", "code"]


def nearest(
    evicted: Float[Tensor, "batch head E d"],
    retained: Float[Tensor, "batch head R d"],
    hidden: Bool[Tensor, "batch head R"] | None = None,
) -> tuple[Float[Tensor, "batch head E"], Int[Tensor, "batch head E"]]:
    """(cosine, place) of the most similar retained key of every evicted one, not counting keys with `hidden`."""
    found = nearest_key(evicted, retained, None, None if hidden is None else ~hidden)
    return found.similarity, found.target.clamp_min(0)  # -1 where all are hidden: no similarity lets that merge


def merged(
    retained: Float[Tensor, "batch head R d"],
    evicted: Float[Tensor, "batch head E d"],
    target: Int[Tensor, "batch head E"],
    similarity: Float[Tensor, "batch head E"],
    gate: Bool[Tensor, "batch head E"],
    weights: Weights,
    centre: float = torch.e,
) -> Float[Tensor, "batch head R d"]:
    """Retained tokens after the evicted ones with `gate` were merged into their targets; others stay untouched.

    centre: the target's own weight with "paper", e = exp(1) as its similarity to itself is 1 (a port uses 0.1).
    """
    if weights == "code":
        return merge_tokens(retained, evicted, target, similarity, counted=torch.ones_like(similarity), merged=gate)
    return merge_tokens(retained, evicted, target, similarity.exp(), own=centre, merged=gate)
