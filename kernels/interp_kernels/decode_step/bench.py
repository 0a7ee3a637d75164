"""What `interp bench kernels` times of decode_step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..timing import DECODE, Maker, Timed
from . import decode_step


def timed(make: Maker) -> Iterator[Timed]:
    """A step that also accounts for attention and drops one token; the cache is as large after it as before."""
    n, q = make.n, make(make.heads, 1, make.d)
    stored = [make.stored() for _ in range(make.layers)]
    mass = [torch.rand(1, make.kv_heads, n, device=make.device) for _ in stored]
    at = [torch.arange(n, device=make.device).repeat(1, make.kv_heads, 1) for _ in stored]

    def step(layer: int) -> Any:
        return decode_step(q, *stored[layer], mass[layer], at[layer], keep_oldest=4, keep_newest=n // 4)

    work = 4 * make.heads * n * make.d
    yield Timed("decode, and evict a token", step, DECODE, work, 2 * make.key_bytes, make.layers)
