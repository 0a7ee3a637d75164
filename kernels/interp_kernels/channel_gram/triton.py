"""channel_gram in one launch: a program sums one tile of the products over one slice of a group's tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import keep_bytes, strided
from ..launch import config, power_of_two, split, tuned
from ..score_block import head_start, real_rows

MOST_CHANNELS = 128  # of a tile: its sums stay in registers
PROGRAMS = 256  # wanted: two for each multiprocessor of a large GPU
LEAST_SLICE = 256  # tokens; every BLOCK_TOKENS divides it


@tuned(
    [config(tokens=32), config(tokens=32, warps=8), config(tokens=64, warps=8, stages=3)], key=["BLOCK_CHANNELS"]
)  # fmt: skip
@triton.jit
def _gram(
    X, Keep, Out, N, heads, slices, length, TILES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """`heads` are those that come out, each the sum of X.readers neighbours."""
    part, tile, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, summed = pair // heads, pair % heads
    row = tile // TILES * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    column = tile % TILES * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inner = tl.arange(0, BLOCK_TOKENS)
    first = part * length
    total = tl.zeros([BLOCK_CHANNELS, BLOCK_CHANNELS], tl.float32)
    for head in range(summed * X.readers, (summed + 1) * X.readers):
        base = head_start(X, batch, head)
        for start in range(first, tl.minimum(N, first + length), BLOCK_TOKENS):
            real = real_rows(batch, start + inner, N, Keep)[:, None]
            at = base + tl.cast(start, tl.int64) * X.row + inner[:, None] * X.row
            left = tl.load(at + row[None, :] * X.column, mask=real & (row < X.columns)[None, :], other=0.0)
            if TILES == 1:
                right = left
            else:
                right = tl.load(at + column[None, :] * X.column, mask=real & (column < X.columns)[None, :], other=0.0)
            if X.widen:
                left, right = left.to(tl.float32), right.to(tl.float32)
            total += tl.dot(tl.trans(left), right, input_precision="ieee")
    out = Out + (tl.cast(pair, tl.int64) * slices + part) * X.columns * X.columns
    inside = (row < X.columns)[:, None] & (column < X.columns)[None, :]
    tl.store(out + row[:, None] * X.columns + column[None, :], total, mask=inside)


def channel_gram(x: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """x^T x over real tokens, summed over groups of heads, [B, heads, D, D]."""
    batch, total, tokens, size = x.shape
    tile = min(MOST_CHANNELS, power_of_two(size))
    tiles = triton.cdiv(size, tile)
    slices, length = split(tokens, batch * heads * tiles**2, LEAST_SLICE, PROGRAMS)
    sums = x.new_empty(batch, heads, slices, size, size, dtype=torch.float32)
    if sums.numel():
        read = strided(x)._replace(readers=total // heads)
        _gram[slices, tiles**2, batch * heads](
            read, keep_bytes(mask), sums, tokens, heads, slices, length, TILES=tiles, BLOCK_CHANNELS=tile
        )
    return sums.sum(2)  # always in the same order
