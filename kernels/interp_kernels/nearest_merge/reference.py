"""Nearest key and merge with the matrices [E, R] and [R, E] written out, in fp64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import accumulator


def nearest_key(
    evicted: Tensor, retained: Tensor, evicted_mask: Tensor | None, retained_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(target, similarity) as documented in the package."""
    cosines = normalize(evicted.double(), dim=-1) @ normalize(retained.double(), dim=-1).mT
    cosines.masked_fill_(~taking_part(retained, retained_mask)[:, :, None, :], -torch.inf)
    cosines.masked_fill_(~taking_part(evicted, evicted_mask)[:, :, :, None], -torch.inf)
    similarity, target = cosines.to(accumulator(evicted)).max(-1)
    return target.masked_fill(similarity == -torch.inf, -1), similarity


def taking_part(keys: Tensor, mask: Tensor | None) -> Tensor:
    """Which keys have a cosine."""
    finite = keys.isfinite().all(-1)
    return finite if mask is None else finite & mask


def merge_tokens(
    x: Tensor, evicted: Tensor, target: Tensor, weight: Tensor, counted: Tensor | None, own: float, merged: Tensor
) -> Tensor:
    """New x as documented in the package."""
    place = torch.arange(x.shape[2], device=x.device)
    into = (place[:, None] == target[:, :, None]) & merged[:, :, None]  # [B, H, R, E]
    weighted = (weight.double()[..., None] * evicted.double()).masked_fill(~merged[..., None], 0.0)
    shares = (weight if counted is None else counted).double().masked_fill(~merged, 0.0)
    total = own + into.double() @ shares[..., None]
    mean = (own * x.double() + into.double() @ weighted) / total
    return torch.where(into.any(-1, keepdim=True), mean.to(x.dtype), x)
