"""channel_energy in one launch: a program sums the squares of one slice of a head's tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import keep_bytes, strided
from ..launch import config, tuned
from ..score_block import head_start, load_rows, real_rows

SLICE = 4096
"""Tokens that one program sums; the slices' sums are added up afterwards, always in the same order."""


@tuned([config(tokens=64), config(tokens=128), config(tokens=256, warps=8)])
@triton.jit
def _sum_of_squares(X, Keep, Out, N, length, BLOCK_TOKENS: tl.constexpr):
    part, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel, x_start = tl.arange(0, X.width), head_start(X, batch, head)
    total = tl.zeros([X.width], tl.float32)
    for start in range(part * length, tl.minimum(N, (part + 1) * length), BLOCK_TOKENS):
        rows = start + tl.arange(0, BLOCK_TOKENS)
        x = load_rows(X, x_start, rows, real_rows(batch, rows, N, Keep)).to(tl.float32)
        total += tl.sum(x * x, 0)
    pair = (batch * tl.num_programs(1) + head).to(tl.int64)
    at = (pair * tl.num_programs(0) + part) * X.columns + channel
    tl.store(Out + at, total, mask=channel < X.columns)


def channel_energy(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real tokens of x squared, [B, H, D]."""
    batch, heads, tokens, size = x.shape
    slices = triton.cdiv(tokens, SLICE)
    sums = x.new_empty(batch, heads, slices, size, dtype=torch.float32)
    if sums.numel():
        _sum_of_squares[slices, heads, batch](strided(x), keep_bytes(mask), sums, tokens, SLICE)
    if mask is None:
        return sums.sum(2) / max(1, tokens)
    return sums.sum(2) / mask.sum(1)[:, None, None].clamp(min=1)
