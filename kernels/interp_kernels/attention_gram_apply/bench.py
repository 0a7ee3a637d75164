"""What `interp bench kernels` times of attention_gram_apply."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..timing import PREFILL, Maker, Timed
from . import attention_gram_apply

COLUMNS = 48


def timed(make: Maker) -> Iterator[Timed]:
    (q, k, _), x = make.pairs(), make(make.heads, make.n, COLUMNS)
    lse = torch.arange(1, make.n + 1, device=make.device).log().expand(1, make.heads, -1).contiguous()
    columns = COLUMNS * (make.column_bytes(make.size) + 2 * make.column_bytes(4))
    yield Timed(
        f"gram, {COLUMNS} columns", lambda layer: attention_gram_apply(q, k, lse, x), PREFILL,
        make.products * (make.d + 2 * COLUMNS), make.key_bytes + make.query_bytes + columns,
    )  # fmt: skip
