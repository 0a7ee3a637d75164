"""What `interp bench kernels` times of think_pack."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..timing import COPY, Maker, Timed
from . import think_pack


def timed(make: Maker) -> Iterator[Timed]:
    k = make(make.kv_heads, make.n, make.d)
    channels = torch.arange(make.d // 2, device=k.device).expand(1, make.kv_heads, -1)
    yield Timed("packing half of them", lambda layer: think_pack(k, channels), COPY, 0, 1.5 * make.key_bytes)
