"""residual_census: one launch for all that is found token by token, and one for every further digit of the median.

The median is selected by radix. The bits of |x| in fp32, read as an integer, are ordered as |x| is. A program counts
how often each value of one 8-bit digit occurs in its share of a text; the counts of all programs, added up, say which
value the median has there, and the next round counts only entries that begin with the digits found so far.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import config, power_of_two, tuned
from ..score_block import keep_bytes, real_rows

BINS = tl.constexpr(256)
SHIFTS = {torch.float32: (16, 8, 0), torch.float16: (16, 8), torch.bfloat16: (16,)}
"""Where the digits after the first start; widened to fp32, 16-bit floats have zeros below their last one."""
PROGRAMS = 2048
"""About how many programs share the tokens: some for every place that a large GPU has."""
LEAST_SHARE = 4
"""Tokens of a program, at least, so that storing its counts stays small beside reading its tokens."""
LEAST_WIDTH = 1024
"""Channels of a block, at least, so that tl.histogram has a value for every thread."""
TABLE = [config(ROWS=4), config(ROWS=1), config(ROWS=2), config(ROWS=1, warps=8), config(ROWS=4, warps=8)]


@triton.jit
def _magnitude_bits(x):
    """|x| as an integer of the same order."""
    return x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _load(X, Keep, batch, rows, last, N, D: tl.constexpr, channel):
    """(x [rows, channels] with zeros where there is nothing real, which of it is real)."""
    real = ((rows < last) & real_rows(batch, rows, N, Keep))[:, None] & (channel < D)[None, :]
    cells = (batch.to(tl.int64) * N + rows)[:, None] * D + channel[None, :]
    return tl.load(X + cells, mask=real, other=0.0).to(tl.float32), real


@triton.jit
def _histogram(digit, counted, CELLS: tl.constexpr):
    """How often each value of a digit occurs among the counted cells of a block."""
    return tl.histogram(tl.reshape(digit, [CELLS]), BINS, mask=tl.reshape(counted, [CELLS]))


@triton.jit
def _store_counts(Counts, counts, part, batch):
    place = (batch * tl.num_programs(0) + part).to(tl.int64) * BINS
    tl.store(Counts + place + tl.arange(0, BINS), counts)


@tuned(TABLE, key=["D"])
@triton.jit
def _tokens(
    X, Keep, Channels, Square, Sink, Value, Channel, Counts, N, C, share, D: tl.constexpr, WIDTH: tl.constexpr,
    SINKS: tl.constexpr, TOP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A share of a text's tokens: sums of squares, largest entries, largest of the sink channels; counts of digit 1."""
    part, batch = tl.program_id(0), tl.program_id(1)
    last = tl.minimum(N, (part + 1) * share)
    channel = tl.arange(0, WIDTH)
    counts = tl.zeros([BINS], tl.int32)
    for start in range(part * share, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        mine, at = rows < last, batch.to(tl.int64) * N + rows
        x, real = _load(X, Keep, batch, rows, last, N, D, channel)
        tl.store(Square + at, tl.sum(x * x, 1), mask=mine)
        bits = _magnitude_bits(x)
        counts += _histogram(bits >> 24, real, ROWS * WIDTH)
        if Channels is not None:
            chosen = tl.arange(0, SINKS)
            index = tl.load(Channels + chosen, mask=chosen < C, other=0)
            there = mine[:, None] & (chosen < C)[None, :]
            sinks = _magnitude_bits(tl.load(X + at[:, None] * D + index[None, :], mask=there, other=0.0))
            tl.store(Sink + at, tl.max(sinks, 1).to(tl.float32, bitcast=True), mask=mine)
        for rank in tl.static_range(TOP):
            # Of equal ones the first is found: no zero beyond the last channel comes before a real one.
            largest, found = tl.max(bits, 1, return_indices=True)
            tl.store(Value + at * TOP + rank, largest.to(tl.float32, bitcast=True), mask=mine)
            tl.store(Channel + at * TOP + rank, found, mask=mine)
            bits = tl.where(channel[None, :] == found[:, None], -1, bits)
    _store_counts(Counts, counts, part, batch)


@tuned(TABLE, key=["D"])
@triton.jit
def _digit_counts(
    X, Keep, Known, Counts, N, share, D: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr
):
    """Counts of the digit at SHIFT in a share of a text's tokens, among entries whose higher digits are Known."""
    part, batch = tl.program_id(0), tl.program_id(1)
    last = tl.minimum(N, (part + 1) * share)
    channel = tl.arange(0, WIDTH)
    known = tl.load(Known + batch)
    counts = tl.zeros([BINS], tl.int32)
    for start in range(part * share, last, ROWS):
        x, real = _load(X, Keep, batch, start + tl.arange(0, ROWS), last, N, D, channel)
        bits = _magnitude_bits(x)
        counts += _histogram((bits >> SHIFT) & 255, real & ((bits >> (SHIFT + 8)) == known), ROWS * WIDTH)
    _store_counts(Counts, counts, part, batch)


def residual_census(
    x: Tensor, channels: Tensor | None, top: int, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Sum of squares [B, N], largest |x| of the channels [B, N], largest |x| and channels [B, N, top], medians [B]."""
    x, keep = x.contiguous(), keep_bytes(mask)
    channels = None if channels is None else channels.contiguous()
    batch, tokens, size = x.shape
    share = max(LEAST_SHARE, triton.cdiv(batch * tokens, PROGRAMS))
    grid = (triton.cdiv(tokens, share), batch)
    square = x.new_empty(batch, tokens, dtype=torch.float32)
    sink = None if channels is None else torch.empty_like(square)
    value = x.new_empty(batch, tokens, top, dtype=torch.float32)
    channel = torch.empty_like(value, dtype=torch.long)
    counts = x.new_empty(batch, grid[0], BINS.value, dtype=torch.int32)
    width, picked = power_of_two(size, LEAST_WIDTH), 0 if channels is None else len(channels)
    _tokens[grid](
        x, keep, channels, square, sink, value, channel, counts, tokens, picked, share,
        D=size, WIDTH=width, SINKS=power_of_two(picked, 1), TOP=top,
    )  # fmt: skip

    real = x.new_full((batch,), tokens, dtype=torch.long) if mask is None else mask.sum(1)
    rank, known = real * size // 2, x.new_zeros(batch, dtype=torch.int32)
    known, rank = _next_digit(counts, known, rank)
    for shift in SHIFTS[x.dtype]:
        _digit_counts[grid](x, keep, known, counts, tokens, share, D=size, WIDTH=width, SHIFT=shift)
        known, rank = _next_digit(counts, known, rank)
    median = (known << SHIFTS[x.dtype][-1]).masked_fill(real == 0, 0).view(torch.float32)
    return square, sink, value, channel, median


def _next_digit(counts: Tensor, known: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The digits known and one more, and the median's rank among the entries that begin with them, [B] each."""
    of_text = counts.sum(1)
    upto = of_text.cumsum(1)
    digit = (upto <= rank[:, None]).sum(1, keepdim=True).clamp(max=255)  # all is counted 0 where no token is real
    before = (upto - of_text).gather(1, digit)
    return (known << 8) | digit[:, 0].int(), rank - before[:, 0]
