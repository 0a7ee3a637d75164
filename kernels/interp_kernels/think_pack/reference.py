"""think_pack, one head after the other."""

from __future__ import annotations

from torch import Tensor


def think_pack(k: Tensor, channels: Tensor) -> Tensor:
    """k [B, Hs, n, D] with only its channels [B, Hs, T]."""
    packed = k.new_empty(*k.shape[:3], channels.shape[-1])
    for batch in range(k.shape[0]):
        for head in range(k.shape[1]):
            packed[batch, head] = k[batch, head][:, channels[batch, head].long()]
    return packed
