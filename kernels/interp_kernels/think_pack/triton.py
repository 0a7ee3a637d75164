"""think_pack in one launch: a program copies one block of a head's tokens."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..launch import config, power_of_two, tuned


@tuned([config(BLOCK=64), config(BLOCK=32), config(BLOCK=128, warps=8)], key=["T", "WIDTH"])
@triton.jit
def _copy_channels(
    K, Channels, Out, H, N, T, k_batch, k_head, k_token, k_channel, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = tl.cast(batch, tl.int64) * H + head
    first = tl.cast(block, tl.int64) * BLOCK
    token, place = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    channel = tl.load(Channels + pair * T + place, mask=place < T, other=0).to(tl.int32)
    here = (token < N - block * BLOCK)[:, None] & (place < T)[None, :]
    source = K + tl.cast(batch, tl.int64) * k_batch + tl.cast(head, tl.int64) * k_head + first * k_token
    bits = tl.load(source + token[:, None] * k_token + channel[None, :] * k_channel, mask=here, other=0)
    tl.store(Out + (pair * N + first) * T + token[:, None] * T + place[None, :], bits, mask=here)


def think_pack(k: Tensor, channels: Tensor) -> Tensor:
    """k [B, Hs, n, D] with only its channels [B, Hs, T]."""
    batch, heads, tokens, _ = k.shape
    kept = channels.shape[-1]
    packed = k.new_empty(batch, heads, tokens, kept)
    if packed.numel():
        _copy_channels[lambda chosen: (triton.cdiv(tokens, chosen["BLOCK"]), heads, batch)](
            k, channels.contiguous(), packed, heads, tokens, kept, *k.stride(), WIDTH=power_of_two(kept)
        )
    return packed
