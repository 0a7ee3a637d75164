"""channel_gram, one product a head."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import accumulator
from ..explicit import clear_padding


def channel_gram(x: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """x^T x over real tokens, summed over groups of heads, [B, heads, D, D]."""
    x = clear_padding(x.to(accumulator(x)), mask)
    return torch.unflatten(x.mT @ x, 1, (heads, -1)).sum(2)
