"""packed_decode with every channel that is not stored written as zero, and the attention matrix in full."""

from __future__ import annotations

import torch

from ..checks import accumulator
from ..explicit import capped
from .call import Decoded, PackedCall
from .channels import unpacked


def packed_decode(call: PackedCall) -> Decoded:
    """z and mass as documented in the package."""
    q, segments, sinks = call.q, call.segments, call.sinks
    batch, heads, queries, d_head = q.shape
    stored, dtype = segments[0].keys.shape[1], accumulator(q)
    group = heads // stored
    full = [unpacked(s.keys.to(dtype), s.channels, d_head) for s in segments]
    offsets = [0.0 if s.offset is None else s.offset.to(dtype)[:, :, None] for s in segments]
    keys = torch.cat([k + offset for k, offset in zip(full, offsets, strict=True)], 2)
    values = torch.cat([unpacked(s.values.to(dtype), s.value_channels, call.d_value) for s in segments], 2)
    scores = capped(call.scale * q.to(dtype) @ keys.repeat_interleave(group, 1).mT, call.softcap)
    biases = [q.new_zeros(1, 1, s.keys.shape[2], dtype=dtype) if s.bias is None else s.bias.to(dtype) for s in segments]
    bias = torch.cat([b.expand(batch, stored, -1) for b in biases], 2)
    scores = scores + bias.repeat_interleave(group, 1)[:, :, None]
    total = keys.shape[2]
    own = torch.arange(total - queries, total, device=q.device)
    scores.masked_fill_(torch.arange(total, device=q.device) > own[:, None], -torch.inf)
    if sinks is not None:
        column = sinks.to(dtype)[None, :, None, None].expand(batch, heads, queries, 1)
        scores = torch.cat([scores, column], -1)
    pattern = scores.softmax(-1)[..., :total]
    z = pattern @ values.repeat_interleave(group, 1)
    received = pattern.sum(2).view(batch, stored, group, total).sum(2)
    return Decoded(z, torch.split(received, [s.keys.shape[2] for s in segments], -1) if call.mass else None)
