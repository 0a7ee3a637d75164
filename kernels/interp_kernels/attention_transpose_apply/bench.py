"""What `interp bench kernels` times of attention_transpose_apply."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..timing import PREFILL, Maker, Timed
from . import attention_transpose_apply

COLUMNS = 48


def timed(make: Maker) -> Iterator[Timed]:
    (q, k, _), y = make.pairs(), make(make.heads, make.n, COLUMNS)
    lse = torch.arange(1, make.n + 1, device=make.device).log().expand(1, make.heads, -1).contiguous()
    read = make.key_bytes + make.query_bytes
    yield Timed(
        "column mass", lambda layer: attention_transpose_apply(q, k, lse), PREFILL, make.products * make.d, read
    )
    yield Timed(
        f"transpose, {COLUMNS} columns", lambda layer: attention_transpose_apply(q, k, lse, y), PREFILL,
        make.products * (make.d + COLUMNS), read + COLUMNS * (make.column_bytes(make.size) + make.column_bytes(4)),
    )  # fmt: skip
