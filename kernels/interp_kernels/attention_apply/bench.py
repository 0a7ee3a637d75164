"""What `interp bench kernels` times of attention_apply."""

from __future__ import annotations

from collections.abc import Iterator

from ..timing import PREFILL, Maker, Timed
from . import attention_apply


def timed(make: Maker) -> Iterator[Timed]:
    (q, k, v), d = make.pairs(), make.d
    read, out = make.key_bytes + make.query_bytes, make.column_bytes(4)
    yield Timed(
        "attention", lambda layer: attention_apply(q, k, v), PREFILL,
        2 * make.products * d, read + make.key_bytes + d * out,
    )  # fmt: skip
    yield Timed("lse", lambda layer: attention_apply(q, k), PREFILL, make.products * d, read)
