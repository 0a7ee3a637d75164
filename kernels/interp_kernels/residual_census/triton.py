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

from ..arguments import keep_bytes, strided
from ..launch import config, power_of_two, split, tuned
from ..score_block import head_start, load_rows, real_rows

BINS = tl.constexpr(256)
SHIFTS = {torch.float32: (16, 8, 0), torch.float16: (16, 8), torch.bfloat16: (16,)}
"""Where the digits after the first start; widened to fp32, 16-bit floats have zeros below their last one."""
PROGRAMS = 2048
"""About how many programs share the tokens: some for every place that a large GPU has."""
LEAST_SHARE = 4
"""Tokens of a program, at least, so that storing its counts stays small beside reading its tokens."""
LEAST_WIDTH = 1024
"""Channels of a block, at least, so that tl.histogram has a value for every thread."""
TABLE = [config(tokens=4), config(tokens=1), config(tokens=2), config(tokens=1, warps=8), config(tokens=4, warps=8)]


@triton.jit
def _magnitude_bits(x):
    """|x| as an integer of the same order."""
    return x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _load(X, Keep, batch, rows, last, N):
    """(x [rows, channels] with zeros where there is nothing real, which of it is real)."""
    real = (rows < last) & real_rows(batch, rows, N, Keep)
    x = load_rows(X, head_start(X, batch, 0), rows, real).to(tl.float32)
    return x, real[:, None] & (tl.arange(0, X.width) < X.columns)[None, :]


@triton.jit
def _histogram(digit, counted, CELLS: tl.constexpr):
    """How often each value of a digit occurs among the counted cells of a block."""
    return tl.histogram(tl.reshape(digit, [CELLS]), BINS, mask=tl.reshape(counted, [CELLS]))


@triton.jit
def _store_counts(Counts, counts, part, batch):
    place = (batch * tl.num_programs(0) + part).to(tl.int64) * BINS
    tl.store(Counts + place + tl.arange(0, BINS), counts)


@tuned(TABLE)
@triton.jit
def _tokens(
    X, Keep, Channels, Square, Sink, Value, Channel, Counts, N, sinks, share,
    TOP: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """A share of a text's tokens: sums of squares, largest entries, largest of the sink channels; counts of digit 1."""
    part, batch = tl.program_id(0), tl.program_id(1)
    last = tl.minimum(N, (part + 1) * share)
    channel = tl.arange(0, X.width)
    counts = tl.zeros([BINS], tl.int32)
    for start in range(part * share, last, BLOCK_TOKENS):
        rows = start + tl.arange(0, BLOCK_TOKENS)
        mine, at = rows < last, batch.to(tl.int64) * N + rows
        x, real = _load(X, Keep, batch, rows, last, N)
        tl.store(Square + at, tl.sum(x * x, 1), mask=mine)
        bits = _magnitude_bits(x)
        counts += _histogram(bits >> 24, real, BLOCK_TOKENS * X.width)
        if Channels is not None:
            chosen = tl.arange(0, BLOCK_CHANNELS)
            index = tl.load(Channels + chosen, mask=chosen < sinks, other=0)
            cells = rows.to(tl.int64)[:, None] * X.row + index[None, :] * X.column
            there = mine[:, None] & (chosen < sinks)[None, :]
            found = _magnitude_bits(tl.load(head_start(X, batch, 0) + cells, mask=there, other=0.0))
            tl.store(Sink + at, tl.max(found, 1).to(tl.float32, bitcast=True), mask=mine)
        for rank in tl.static_range(TOP):
            # Of equal ones the first is found: no zero beyond the last channel comes before a real one.
            largest, place = tl.max(bits, 1, return_indices=True)
            tl.store(Value + at * TOP + rank, largest.to(tl.float32, bitcast=True), mask=mine)
            tl.store(Channel + at * TOP + rank, place, mask=mine)
            bits = tl.where(channel[None, :] == place[:, None], -1, bits)
    _store_counts(Counts, counts, part, batch)


@tuned(TABLE)
@triton.jit
def _digit_counts(X, Keep, Known, Counts, N, share, SHIFT: tl.constexpr, BLOCK_TOKENS: tl.constexpr):
    """Counts of the digit at SHIFT in a share of a text's tokens, among entries whose higher digits are Known."""
    part, batch = tl.program_id(0), tl.program_id(1)
    last = tl.minimum(N, (part + 1) * share)
    known = tl.load(Known + batch)
    counts = tl.zeros([BINS], tl.int32)
    for start in range(part * share, last, BLOCK_TOKENS):
        x, real = _load(X, Keep, batch, start + tl.arange(0, BLOCK_TOKENS), last, N)
        bits = _magnitude_bits(x)
        counted = real & ((bits >> (SHIFT + 8)) == known)
        counts += _histogram((bits >> SHIFT) & 255, counted, BLOCK_TOKENS * X.width)
    _store_counts(Counts, counts, part, batch)


def residual_census(
    x: Tensor, channels: Tensor | None, top: int, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Sum of squares [B, N], largest |x| of the channels [B, N], largest |x| and channels [B, N, top], medians [B]."""
    keep = keep_bytes(mask)
    channels = None if channels is None else channels.contiguous()
    batch, tokens, size = x.shape
    parts, share = split(tokens, batch, LEAST_SHARE, PROGRAMS)
    square = x.new_empty(batch, tokens, dtype=torch.float32)
    sink = None if channels is None else torch.empty_like(square)
    value = x.new_empty(batch, tokens, top, dtype=torch.float32)
    channel = torch.empty_like(value, dtype=torch.long)
    counts = x.new_empty(batch, parts, BINS.value, dtype=torch.int32)
    read, picked = strided(x[:, None], least=LEAST_WIDTH), 0 if channels is None else len(channels)
    _tokens[parts, batch](
        read, keep, channels, square, sink, value, channel, counts, tokens, picked, share,
        TOP=top, BLOCK_CHANNELS=power_of_two(picked, 1),
    )  # fmt: skip

    real = x.new_full((batch,), tokens, dtype=torch.long) if mask is None else mask.sum(1)
    rank, known = real * size // 2, x.new_zeros(batch, dtype=torch.int32)
    known, rank = _next_digit(counts, known, rank)
    for shift in SHIFTS[x.dtype]:
        _digit_counts[parts, batch](read, keep, known, counts, tokens, share, SHIFT=shift)
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
