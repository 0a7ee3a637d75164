"""packed_decode with batched products: the heads of a group are rows of one product, so a key is read once for all.

Queries are cut to a segment's channels, which is cheap, and keys are never expanded. Many new tokens at once go through
in blocks of rows, so that scores stay small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import accumulator
from ..explicit import capped
from .call import Decoded, KeySegment, PackedCall, in_blocks
from .channels import cut, unpacked

BLOCK_SCORES = 1 << 22  # 16 MB of fp32 scores at a time


def packed_decode(call: PackedCall) -> Decoded:
    """z and mass as documented in the package."""
    return in_blocks(call, BLOCK_SCORES, _attend)


def _attend(call: PackedCall) -> Decoded:
    batch, heads, queries, d_head = call.q.shape
    stored, dtype = call.segments[0].keys.shape[1], accumulator(call.q)
    grouped = (call.q * call.scale).reshape(batch, stored, -1, d_head)  # rows: every query of every head of the group
    parts = [_scores(grouped, s, call.softcap).to(dtype) for s in call.segments]
    if queries > 1:
        newest = parts[-1].view(batch, heads, queries, -1)[..., -queries:]
        newest.masked_fill_(torch.ones(queries, queries, dtype=torch.bool, device=call.q.device).triu(1), -torch.inf)
    if call.sinks is not None:
        column = call.sinks.to(dtype).view(1, stored, -1, 1, 1).expand(batch, -1, -1, queries, 1)
        parts.append(column.reshape(batch, stored, -1, 1))
    patterns = torch.split(torch.cat(parts, -1).softmax(-1), [part.shape[-1] for part in parts], -1)
    z = None
    for s, pattern in zip(call.segments, patterns, strict=False):  # a column of learned sinks has no values
        read = unpacked(torch.matmul(pattern.to(s.values.dtype), s.values).to(dtype), s.value_channels, call.d_value)
        z = read if z is None else z.add_(read)
    assert z is not None
    received = tuple(pattern.sum(2) for pattern in patterns[: len(call.segments)]) if call.mass else None
    return Decoded(z.view(batch, heads, queries, -1), received)


def _scores(grouped: Tensor, s: KeySegment, softcap: float | None) -> Tensor:
    """Scores [B, Hs, rows, n] of a segment."""
    scores = torch.matmul(cut(grouped, s.channels), s.keys.mT)
    if s.offset is not None:
        scores += torch.matmul(grouped, s.offset.to(grouped.dtype)[..., None])
    scores = capped(scores, softcap)
    return scores if s.bias is None else scores + s.bias[:, :, None]
