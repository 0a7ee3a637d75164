"""What `interp bench kernels` times of channel_energy."""

from __future__ import annotations

from collections.abc import Iterator

from ..timing import COPY, Maker, Timed
from . import channel_energy


def timed(make: Maker) -> Iterator[Timed]:
    k = make(make.kv_heads, make.n, make.d)
    yield Timed("channel energy", lambda layer: channel_energy(k), COPY, 2 * k.numel(), make.key_bytes)
