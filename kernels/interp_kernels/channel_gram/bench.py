"""What `interp bench kernels` times of channel_gram."""

from __future__ import annotations

from collections.abc import Iterator

from ..timing import COPY, Maker, Timed
from . import channel_gram


def timed(make: Maker) -> Iterator[Timed]:
    k = make(make.kv_heads, make.n, make.d)
    yield Timed("channel Gram matrix", lambda layer: channel_gram(k), COPY, 2 * make.d * k.numel(), make.key_bytes)
