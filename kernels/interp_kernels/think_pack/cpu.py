"""think_pack, all heads at once, laid out channel by channel."""

from __future__ import annotations

from torch import Tensor

from ..packed_decode.channels import cut


def think_pack(k: Tensor, channels: Tensor) -> Tensor:
    """k [B, Hs, n, D] with only its channels [B, Hs, T]."""
    return cut(k, channels).mT.contiguous().mT
