"""attention_transpose_apply in blocks of query rows: one product into the scores, one out of the pattern."""

from __future__ import annotations

from torch import Tensor

from ..blocks import HeadPattern, real_rows, row_blocks, row_shift
from ..checks import accumulator
from ..facts import Facts


def attention_transpose_apply(q: Tensor, k: Tensor, lse: Tensor, y: Tensor | None, facts: Facts) -> Tensor:
    """A^T @ y, [B, H, S, R]; with y None the column sums of A, [B, H, S, 1]."""
    batch, heads, queries, keys = facts.shape
    dtype = accumulator(q)
    shift = row_shift(lse, facts, dtype)
    width = 1 if y is None else y.shape[-1]
    out = q.new_zeros(batch, heads, width, keys, dtype=dtype)  # key axis last: its products run along A's rows
    for b in range(batch):
        for h in range(heads):
            pattern = HeadPattern(q, k, shift, b, h, facts)
            weights = q.new_ones(queries, 1, dtype=dtype) if y is None else real_rows(y, b, h, facts.query_mask, dtype)
            for rows, seen in row_blocks(facts):
                out[b, h, :, seen].addmm_(weights[rows].T, pattern.block(rows, seen))
    return out.mT
