"""What `interp bench kernels` times of nearest_key."""

from __future__ import annotations

from collections.abc import Iterator

from ..timing import COPY, Maker, Timed
from . import nearest_key


def timed(make: Maker) -> Iterator[Timed]:
    k, few = make(make.kv_heads, make.n, make.d), make.n // 5
    pairs = make.kv_heads * few * (make.n - few)
    yield Timed(
        "nearest of a fifth for the rest", lambda layer: nearest_key(k[:, :, few:], k[:, :, :few]), COPY,
        2 * make.d * pairs, make.key_bytes,
    )  # fmt: skip
