"""channel_energy, one expression."""

from __future__ import annotations

from torch import Tensor

from ..checks import accumulator


def channel_energy(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real tokens of x squared, [B, H, D]."""
    x = x.to(accumulator(x))
    if mask is None:
        return x.square().sum(dim=2) / max(1, x.shape[2])
    kept = x.masked_fill(~mask[:, None, :, None], 0.0)
    return kept.square().sum(dim=2) / mask.sum(dim=1)[:, None, None].clamp(min=1)
