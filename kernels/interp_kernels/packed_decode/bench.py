"""What `interp bench kernels` times of packed_decode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..timing import DECODE, Maker, Timed
from . import KeySegment, cut, packed_decode

RATIOS = (0.4, 0.5, 0.7)
RECENT = 32


def timed(make: Maker) -> Iterator[Timed]:
    q, stored = make(make.heads, 1, make.d), [make.stored() for _ in range(make.layers)]
    work, half = 2 * make.heads * make.n * make.d, make.key_bytes
    dense = [[KeySegment(k, v)] for k, v in stored]
    yield Timed("decode, dense", partial(_decode, q, dense), DECODE, 2 * work, 2 * half, make.layers)
    for ratio in RATIOS:
        kept = make.d - int(make.d * ratio)
        packed = [_packed(k, v, kept) for k, v in stored]
        read = 1 + kept / make.d
        name = f"decode, {ratio:.0%} of key channels pruned"
        yield Timed(name, partial(_decode, q, packed), DECODE, work * read, half * read, make.layers)


def _decode(q: Tensor, layers: list[list[KeySegment]], layer: int) -> Any:
    return packed_decode(q, layers[layer], mass=False)


def _packed(k: Tensor, v: Tensor, kept: int) -> list[KeySegment]:
    """Keys with `kept` random channels, but for the newest ones."""
    channels = torch.rand(*k.shape[:2], k.shape[-1], device=k.device).argsort(-1)[..., :kept].sort(-1).values
    old, new = slice(0, k.shape[2] - RECENT), slice(k.shape[2] - RECENT, None)
    keys = cut(k[:, :, old], channels)
    values = v[:, :, old].contiguous()
    if not k.is_cuda:  # as the cache lays it out
        keys, values = keys.mT.contiguous().mT, values.mT.contiguous().mT
    return [
        KeySegment(keys, values, channels.to(torch.int16)), KeySegment(k[:, :, new].clone(), v[:, :, new].clone())
    ]  # fmt: skip
