"""packed_decode with batched products: the heads of a group are rows of one product, so a key is read once for all.

Queries are cut to a segment's channels, which is cheap, and keys are never expanded. Many new tokens at once go through
in blocks of rows, so that scores stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..checks import accumulator
from .channels import cut, unpacked

BLOCK_SCORES = 1 << 22  # 16 MB of fp32 scores at a time


def packed_decode(
    q: Tensor,
    segments: Sequence[Any],
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    d_value: int,
    mass: bool,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """(z, mass) as documented in the package."""
    batch, heads, queries, _ = q.shape
    total = sum(s.keys.shape[2] for s in segments)
    step = max(1, BLOCK_SCORES // max(1, batch * heads * total))
    parts, received = [], None
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        # the last queries - stop tokens are newer than any row of this block
        z, new = _attend(q[:, :, start:stop], segments, queries - stop, scale, softcap, sinks, d_value, mass)
        parts.append(z)
        if received is None:
            received = new
        elif new is not None:  # later blocks see more of the newest tokens
            received = tuple(
                pad(old, (0, x.shape[-1] - old.shape[-1])) + x for old, x in zip(received, new, strict=True)
            )
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2), received


def _attend(
    q: Tensor,
    segments: Sequence[Any],
    hidden: int,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    d_value: int,
    mass: bool,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """(z, mass) of one block of queries, the newest of which may not see the last `hidden` tokens."""
    batch, heads, queries, d_head = q.shape
    stored, dtype = segments[0].keys.shape[1], accumulator(q)
    grouped = (q * scale).reshape(batch, stored, -1, d_head)  # rows: every query of every head of the group
    if hidden:
        last = segments[-1]
        seen = slice(0, last.keys.shape[2] - hidden)
        bias = None if last.bias is None else last.bias[:, :, seen]
        segments = [
            *segments[:-1],
            last._replace(keys=last.keys[:, :, seen], values=last.values[:, :, seen], bias=bias),
        ]
    parts = [_scores(grouped, s, softcap).to(dtype) for s in segments]
    if queries > 1:
        newest = parts[-1].view(batch, heads, queries, -1)[..., -queries:]
        newest.masked_fill_(torch.ones(queries, queries, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    if sinks is not None:
        column = sinks.to(dtype).view(1, stored, -1, 1, 1).expand(batch, -1, -1, queries, 1)
        parts.append(column.reshape(batch, stored, -1, 1))
    patterns = torch.cat(parts, -1).softmax(-1).split([part.shape[-1] for part in parts], -1)
    z = None
    for s, pattern in zip(segments, patterns, strict=False):  # a column of learned sinks has no values
        read = unpacked(torch.matmul(pattern.to(s.values.dtype), s.values).to(dtype), s.value_channels, d_value)
        z = read if z is None else z.add_(read)
    assert z is not None
    received = tuple(pattern.sum(2) for pattern in patterns[: len(segments)]) if mass else None
    return z.view(batch, heads, queries, -1), received


def _scores(grouped: Tensor, s: Any, softcap: float | None) -> Tensor:
    """Scores [B, Hs, rows, n] of a segment."""
    scores = torch.matmul(cut(grouped, s.channels), s.keys.mT)
    if s.offset is not None:
        scores += torch.matmul(grouped, s.offset.to(grouped.dtype)[..., None])
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    return scores if s.bias is None else scores + s.bias[:, :, None]
