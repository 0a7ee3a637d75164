"""channel_gram in one launch: a program sums one tile of the products over one slice of a group's tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import config, exact, power_of_two, tuned
from ..score_block import keep_bytes, real_rows

MOST_CHANNELS = 128  # of a tile: its sums stay in registers
PROGRAMS = 256  # wanted: two for each multiprocessor of a large GPU
SLICE_STEP = 256  # tokens; every BLOCK divides it


@tuned([config(BLOCK=32), config(BLOCK=32, warps=8), config(BLOCK=64, warps=8, stages=3)], key=["D", "TILE"])
@triton.jit
def _gram(
    X, Keep, Out, N, heads, group, slices, slice_tokens, x_batch, x_head, x_token, x_channel,
    D: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, IN_FP32: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part, tile, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, stored = pair // heads, pair % heads
    row = tile // TILES * TILE + tl.arange(0, TILE)
    column = tile % TILES * TILE + tl.arange(0, TILE)
    inner = tl.arange(0, BLOCK)
    first = part * slice_tokens
    total = tl.zeros([TILE, TILE], tl.float32)
    for head in range(stored * group, (stored + 1) * group):
        base = X + tl.cast(batch, tl.int64) * x_batch + tl.cast(head, tl.int64) * x_head
        for start in range(first, tl.minimum(N, first + slice_tokens), BLOCK):
            real = real_rows(batch, start + inner, N, Keep)[:, None]
            at = base + tl.cast(start, tl.int64) * x_token + inner[:, None] * x_token
            left = tl.load(at + row[None, :] * x_channel, mask=real & (row < D)[None, :], other=0.0)
            if TILES == 1:
                right = left
            else:
                right = tl.load(at + column[None, :] * x_channel, mask=real & (column < D)[None, :], other=0.0)
            if IN_FP32:
                left, right = left.to(tl.float32), right.to(tl.float32)
            total += tl.dot(tl.trans(left), right, input_precision="ieee")
    out = Out + (tl.cast(pair, tl.int64) * slices + part) * D * D
    tl.store(out + row[:, None] * D + column[None, :], total, mask=(row < D)[:, None] & (column < D)[None, :])


def channel_gram(x: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """x^T x over real tokens, summed over groups of heads, [B, heads, D, D]."""
    batch, total, tokens, size = x.shape
    tile = min(MOST_CHANNELS, power_of_two(size))
    tiles = triton.cdiv(size, tile)
    wanted = max(1, PROGRAMS // max(1, batch * heads * tiles**2))
    slice_tokens = max(1, triton.cdiv(tokens, wanted * SLICE_STEP)) * SLICE_STEP
    slices = max(1, triton.cdiv(tokens, slice_tokens))
    sums = x.new_empty(batch, heads, slices, size, size, dtype=torch.float32)
    if sums.numel():
        _gram[slices, tiles**2, batch * heads](
            x, keep_bytes(mask), sums, tokens, heads, total // heads, slices, slice_tokens, *x.stride(),
            D=size, TILE=tile, TILES=tiles, IN_FP32=exact(x),
        )  # fmt: skip
    return sums.sum(2)  # always in the same order
