"""channel_gram in blocks of tokens: the heads of a group are rows of one product, and x is never copied whole."""

from __future__ import annotations

from torch import Tensor

from ..checks import accumulator
from ..explicit import clear_padding

BLOCK_TOKENS = 1024


def channel_gram(x: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """x^T x over real tokens, summed over groups of heads, [B, heads, D, D]."""
    batch, _, tokens, size = x.shape
    total = x.new_zeros(batch * heads, size, size, dtype=accumulator(x))
    for start in range(0, tokens, BLOCK_TOKENS):
        block = slice(start, start + BLOCK_TOKENS)
        real = clear_padding(x[:, :, block].to(total.dtype), None if mask is None else mask[:, block])
        rows = real.reshape(batch * heads, -1, size)
        total.baddbmm_(rows.mT, rows)
    return total.view(batch, heads, size, size)
