"""channel_energy in one launch: a program sums the squares of one slice of a head's tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import config, power_of_two, tuned
from ..score_block import keep_bytes, real_rows

SLICE = 4096
"""Tokens that one program sums; the slices' sums are added up afterwards, always in the same order."""


@tuned([config(BLOCK=64), config(BLOCK=128), config(BLOCK=256, warps=8)], key=["D"])
@triton.jit
def _sum_of_squares(
    X, Keep, Out, N, H, slices, D: tl.constexpr, WIDTH: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr
):
    part, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    base = (batch * H + head).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(part * SLICE, tl.minimum(N, (part + 1) * SLICE), BLOCK):
        rows = start + tl.arange(0, BLOCK)
        real = real_rows(batch, rows, N, Keep)[:, None] & (channel < D)[None, :]
        x = tl.load(X + base * N * D + rows[:, None] * D + channel[None, :], mask=real, other=0.0).to(tl.float32)
        total += tl.sum(x * x, 0)
    tl.store(Out + (base * slices + part) * D + channel, total, mask=channel < D)


def channel_energy(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real tokens of x squared, [B, H, D]."""
    batch, heads, tokens, size = x.shape
    slices = triton.cdiv(tokens, SLICE)
    sums = x.new_empty(batch, heads, slices, size, dtype=torch.float32)
    if sums.numel():
        _sum_of_squares[slices, heads, batch](
            x.contiguous(), keep_bytes(mask), sums, tokens, heads, slices, D=size, WIDTH=power_of_two(size), SLICE=SLICE
        )
    if mask is None:
        return sums.sum(2) / max(1, tokens)
    return sums.sum(2) / mask.sum(1)[:, None, None].clamp(min=1)
