"""residual_census by sorting everything."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import accumulator


def residual_census(
    x: Tensor, channels: Tensor | None, top: int, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Sum of squares [B, N], largest |x| of the channels [B, N], largest |x| and channels [B, N, top], medians [B]."""
    size = x.abs().to(accumulator(x))
    order = size.sort(stable=True, dim=-1, descending=True)
    return (
        size.square().sum(-1),
        None if channels is None else size[..., channels].amax(-1),
        order.values[..., :top],
        order.indices[..., :top],
        torch.stack([_median(text if mask is None else text[mask[b]]) for b, text in enumerate(size)]),
    )


def _median(size: Tensor) -> Tensor:
    """The middle one of all entries, the upper one of two; 0 of none."""
    ordered = size.flatten().sort().values
    return ordered[len(ordered) // 2] if len(ordered) else size.new_zeros(())
