"""channel_energy in blocks of tokens: no copy of x in another dtype."""

from __future__ import annotations

from torch import Tensor

from ..checks import accumulator

BLOCK_TOKENS = 1024


def channel_energy(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real tokens of x squared, [B, H, D]."""
    batch, heads, tokens, size = x.shape
    total = x.new_zeros(batch, heads, size, dtype=accumulator(x))
    for start in range(0, tokens, BLOCK_TOKENS):
        block = x[:, :, start : start + BLOCK_TOKENS].to(total.dtype)
        if mask is not None:
            block = block.masked_fill(~mask[:, None, start : start + BLOCK_TOKENS, None], 0.0)
        total += block.square().sum(dim=2)
    if mask is None:
        return total / max(1, tokens)
    return total / mask.sum(dim=1)[:, None, None].clamp(min=1)
