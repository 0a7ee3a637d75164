"""think_pack in one launch: a program copies one block of a head's tokens."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..arguments import strided
from ..launch import config, power_of_two, tuned
from ..score_block import head_start


@tuned([config(tokens=64), config(tokens=32), config(tokens=128, warps=8)], key=["kept", "BLOCK_CHANNELS"])
@triton.jit
def _copy_channels(K, Channels, Out, tokens, kept, BLOCK_CHANNELS: tl.constexpr, BLOCK_TOKENS: tl.constexpr):
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = tl.cast(batch, tl.int64) * tl.num_programs(1) + head
    first = tl.cast(block, tl.int64) * BLOCK_TOKENS
    token, place = tl.arange(0, BLOCK_TOKENS), tl.arange(0, BLOCK_CHANNELS)
    channel = tl.load(Channels + pair * kept + place, mask=place < kept, other=0).to(tl.int32)
    here = (token < tokens - block * BLOCK_TOKENS)[:, None] & (place < kept)[None, :]
    source = head_start(K, batch, head) + first * K.row
    bits = tl.load(source + token[:, None] * K.row + channel[None, :] * K.column, mask=here, other=0)
    tl.store(Out + (pair * tokens + first) * kept + token[:, None] * kept + place[None, :], bits, mask=here)


def think_pack(k: Tensor, channels: Tensor) -> Tensor:
    """k [B, Hs, n, D] with only its channels [B, Hs, T]."""
    batch, heads, tokens, _ = k.shape
    kept = channels.shape[-1]
    packed = k.new_empty(batch, heads, tokens, kept)
    if packed.numel():
        _copy_channels[lambda chosen: (triton.cdiv(tokens, chosen["BLOCK_TOKENS"]), heads, batch)](
            strided(k), channels.contiguous(), packed, tokens, kept, BLOCK_CHANNELS=power_of_two(kept)
        )
    return packed
