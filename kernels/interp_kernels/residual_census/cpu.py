"""residual_census in blocks of tokens; the median by radix selection, which keeps counts instead of a sorted copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..checks import accumulator

BLOCK_CELLS = 512 * 1024  # 2 MB of fp32
BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
DIGIT = 16  # bits that one round of the selection settles; 16-bit floats need one round


def residual_census(
    x: Tensor, channels: Tensor | None, top: int, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Sum of squares [B, N], largest |x| of the channels [B, N], largest |x| and channels [B, N, top], medians [B]."""
    dtype, tokens = accumulator(x), x.shape[:2]
    square = x.new_empty(tokens, dtype=dtype)
    sink = None if channels is None else torch.empty_like(square)
    value = x.new_empty(*tokens, top, dtype=dtype)
    channel = torch.empty_like(value, dtype=torch.long)
    for text in range(tokens[0]):
        for rows in _blocks(x[text]):
            size = x[text, rows].abs().to(dtype)
            square[text, rows] = size.square().sum(-1)
            if sink is not None:
                sink[text, rows] = size[:, channels].amax(-1)
            for rank in range(top):  # torch's max finds the first of equal values, which its topk does not promise
                value[text, rows, rank], found = size.max(-1)
                channel[text, rows, rank] = found
                size.scatter_(-1, found[:, None], -1)
    medians = [_median(x[text], None if mask is None else mask[text]) for text in range(tokens[0])]
    return square, sink, value, channel, torch.stack(medians).to(dtype)


def _median(x: Tensor, keep: Tensor | None) -> Tensor:
    """The middle one of |x| over all kept tokens of x [N, d_model], the upper one of two; 0 where none is kept.

    Floats without a sign are ordered as their bits are, read as an integer. A round counts how often each value of
    one 16-bit digit occurs among the entries that share the digits above it with the median.
    """
    kind = BITS[x.dtype]
    count = (len(x) if keep is None else int(keep.sum())) * x.shape[1]
    if not count:
        return x.new_zeros(())
    first = torch.iinfo(kind).bits - DIGIT
    rank, known = count // 2, 0
    for shift in range(first, -1, -DIGIT):
        counts = torch.zeros(1 << DIGIT, dtype=torch.long, device=x.device)
        for rows in _blocks(x):
            block = x[rows] if keep is None else x[rows][keep[rows]]
            bits = block.view(kind) & torch.iinfo(kind).max  # without the sign
            if shift != first:
                bits = bits[(bits >> (shift + DIGIT)) == known]
                bits &= (1 << (shift + DIGIT)) - 1
            counts += torch.bincount((bits >> shift).flatten(), minlength=1 << DIGIT)
        below = counts.cumsum(0)
        digit = int((below <= rank).sum())
        rank -= int(below[digit] - counts[digit])
        known = known << DIGIT | digit
    return torch.tensor(known, dtype=kind, device=x.device).view(x.dtype)


def _blocks(x: Tensor) -> Iterator[slice]:
    """Cut x's rows into blocks of at most BLOCK_CELLS entries, or one row."""
    step = max(1, BLOCK_CELLS // x.shape[1])
    for start in range(0, len(x), step):
        yield slice(start, start + step)
