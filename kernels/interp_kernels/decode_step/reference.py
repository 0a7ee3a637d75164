"""decode_step with attention in one expression."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import accumulator
from ..explicit import capped, per_query_head
from .slots import Evicted, StepCall, least_attended, replace


def decode_step(call: StepCall) -> tuple[Tensor, Evicted]:
    """(z, evicted) as documented in the package."""
    q, keys, values, mass, positions, keep_oldest, keep_newest, padding, scale, softcap, sinks = call
    batch, heads, _, _ = q.shape
    stored, n = keys.shape[1:3]
    scores = capped(scale * q.to(accumulator(q)) @ per_query_head(keys, heads).mT, softcap)
    wide = per_query_head(values, heads)
    if padding is not None:
        hidden = per_query_head(positions < padding[:, None, None], heads) > 0
        scores = scores.masked_fill(hidden[:, :, None], -torch.inf)
        wide = wide.masked_fill(hidden[..., None], 0.0)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(batch, heads, 1, 1)
        scores = torch.cat([scores, column], -1)
    pattern = scores.softmax(-1)[..., :n]
    mass[..., -1] = 0.0
    mass += pattern.view(batch, stored, -1, n).sum(2)
    slot = least_attended(mass, positions, keep_oldest, keep_newest, padding)
    return pattern @ wide, replace(slot, keys, values, mass, positions)
