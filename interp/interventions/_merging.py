"""Merging evicted tokens into retained ones: who is nearest, and how the two are averaged.

Tensors `[batch, head, token, channel]`; E evicted and R retained tokens. A merge is a weighted mean of the target and
all tokens merged into it. With u the cosine of two keys, the weights of (target, merged token) before division are

* "code" (D2O's release): 1 and u, divided by 1 + the number merged: weights sum to less than 1 and norms shrink;
* "paper" (D2O, equations 11 and 12): e and exp(u), divided by their sum.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int

Tensor = torch.Tensor
Weights = Literal["paper", "code"]
BLOCK = 256  # evicted tokens whose similarities are held at a time


def nearest(
    evicted: Float[Tensor, "batch head E d"],
    retained: Float[Tensor, "batch head R d"],
    hidden: Bool[Tensor, "batch head R"] | None = None,
) -> tuple[Float[Tensor, "batch head E"], Int[Tensor, "batch head E"]]:
    """(cosine, place) of the most similar retained key of every evicted one, not counting keys with `hidden`."""
    unit = torch.nn.functional.normalize
    targets = unit(retained.float(), dim=-1).mT
    found = []
    for rows in unit(evicted.float(), dim=-1).split(BLOCK, 2):
        cosines = rows @ targets
        if hidden is not None:
            cosines.masked_fill_(hidden[:, :, None], -torch.inf)
        found.append(cosines.max(-1))
    return torch.cat([f.values for f in found], 2), torch.cat([f.indices for f in found], 2)


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
    own = 1.0 if weights == "code" else centre
    weight = (similarity if weights == "code" else similarity.exp()).where(gate, 0.0)
    counted = gate.float() if weights == "code" else weight
    shape = retained.shape[:3]
    total = torch.full(shape, own, device=retained.device).scatter_add_(2, target, counted)
    added = torch.zeros(*shape, retained.shape[-1], device=retained.device)
    index = target[..., None].expand(-1, -1, -1, retained.shape[-1])
    added.scatter_add_(2, index, weight[..., None] * evicted.float())
    touched = torch.zeros(shape, device=retained.device).scatter_add_(2, target, gate.float()) > 0
    mean = (own * retained.float() + added) / total[..., None]
    return torch.where(touched[..., None], mean.to(retained.dtype), retained)
