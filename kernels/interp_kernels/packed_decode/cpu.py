"""packed_decode with batched products: the heads of a group are rows of one product, so a key is read once for all.

Queries are cut to a segment's channels, which is cheap, and keys are never expanded. Many new tokens at once go through
in blocks of rows, so that scores stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import accumulator

BLOCK_SCORES = 1 << 22  # 16 MB of fp32 scores at a time


def packed_decode(
    q: Tensor, segments: Sequence[Any], scale: float, softcap: float | None, sinks: Tensor | None, d_value: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(z, mass) as documented in the package."""
    batch, heads, queries, _ = q.shape
    total = sum(s.keys.shape[2] for s in segments)
    dtype = accumulator(q)
    z = q.new_empty(batch, heads, queries, d_value, dtype=dtype)
    mass = [torch.zeros(s.keys.shape[:3], dtype=dtype, device=q.device) for s in segments]
    step = max(1, BLOCK_SCORES // (batch * heads * total))
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        hidden = queries - rows.stop  # newest tokens that no row of this block sees
        received = _attend(q[:, :, rows], segments, hidden, scale, softcap, sinks, z[:, :, rows])
        for kept, new in zip(mass, received, strict=True):
            kept[:, :, : new.shape[-1]] += new
    return z, tuple(mass)


def _attend(
    q: Tensor,
    segments: Sequence[Any],
    hidden: int,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    z: Tensor,
) -> tuple[Tensor, ...]:
    """One block of queries, the newest of which may not see the last `hidden` tokens; fills z, returns the mass."""
    batch, heads, queries, d_head = q.shape
    stored, dtype = segments[0].keys.shape[1], z.dtype
    grouped = q.reshape(batch, stored, -1, d_head) * scale  # rows: every query of every head of the group
    last = len(segments) - 1
    lengths = [s.keys.shape[2] - (hidden if i == last else 0) for i, s in enumerate(segments)]
    parts = []
    for s, n in zip(segments, lengths, strict=True):
        rows = grouped
        if s.channels is not None:
            rows = rows.gather(-1, s.channels.long()[:, :, None].expand(-1, -1, rows.shape[2], -1))
        parts.append(torch.matmul(rows, s.keys[:, :, :n].mT).to(dtype))
        if s.offset is not None:
            parts[-1] += torch.matmul(grouped, s.offset.to(q.dtype)[..., None]).to(dtype)
        if softcap is not None:
            parts[-1].div_(softcap).tanh_().mul_(softcap)
        if s.bias is not None:
            parts[-1] += s.bias[:, :, None, :n]
    if queries > 1:
        newest = parts[-1].view(batch, heads, queries, -1)[..., -queries:]
        newest.masked_fill_(torch.ones(queries, queries, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    if sinks is not None:
        column = sinks.to(dtype).view(1, stored, -1, 1, 1).expand(batch, -1, -1, queries, 1)
        parts.append(column.reshape(batch, stored, -1, 1))
    pattern = torch.cat(parts, -1).softmax(-1)
    out = pattern.new_zeros(*pattern.shape[:-1], z.shape[-1])
    received = []
    for s, n, p in zip(segments, lengths, pattern.split([x.shape[-1] for x in parts], -1), strict=False):
        product = torch.matmul(p.to(s.values.dtype), s.values[:, :, :n]).to(dtype)
        if s.value_channels is None:
            out += product
        else:
            out.scatter_add_(-1, s.value_channels.long()[:, :, None].expand(-1, -1, product.shape[2], -1), product)
        received.append(p.sum(2))
    z.copy_(out.view(batch, heads, queries, -1))
    return tuple(received)
