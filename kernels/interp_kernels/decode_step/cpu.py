"""decode_step with batched products: heads that share a stored head are rows of one product, so a key is read once.

Keys and values in half precision are widened one block of slots at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import accumulator
from ..explicit import capped
from .slots import Evicted, StepCall, least_attended, replace

BLOCK_SLOTS = 4096


def decode_step(call: StepCall) -> tuple[Tensor, Evicted]:
    """(z, evicted) as documented in the package."""
    q, keys, values, mass, positions, keep_oldest, keep_newest, padding, scale, softcap, sinks = call
    batch, heads, _, size = q.shape
    stored, n = keys.shape[1:3]
    grouped = q.to(accumulator(q)).reshape(batch, stored, -1, size) * scale
    blocks = [slice(start, start + BLOCK_SLOTS) for start in range(0, n, BLOCK_SLOTS)]
    scores = capped(torch.cat([grouped @ keys[:, :, block].to(grouped.dtype).mT for block in blocks], -1), softcap)
    hidden = None if padding is None else positions < padding[:, None, None]
    if hidden is not None:
        scores.masked_fill_(hidden[:, :, None], -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, stored, -1, 1).expand(batch, -1, -1, 1)
        scores = torch.cat([scores, column], -1)
    pattern = scores.softmax(-1)[..., :n]
    z = grouped.new_zeros(*grouped.shape[:3], values.shape[-1])
    for block in blocks:
        some = values[:, :, block].to(grouped.dtype)
        if hidden is not None:  # padding may hold anything, and 0 times NaN is NaN
            some = some.masked_fill(hidden[:, :, block, None], 0.0)
        z += pattern[..., block] @ some
    mass[..., -1] = 0.0
    mass += pattern.sum(2)
    slot = least_attended(mass, positions, keep_oldest, keep_newest, padding)
    return z.view(batch, heads, 1, -1), replace(slot, keys, values, mass, positions)
