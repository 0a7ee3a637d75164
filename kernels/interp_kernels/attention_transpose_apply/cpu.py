"""attention_transpose_apply in blocks of query rows: one product into the scores, one out of the pattern."""

from __future__ import annotations

from threading import Lock

from torch import Tensor

from ..blocks import HeadPattern, Task, real_rows, row_shift, tasks
from ..checks import accumulator
from ..facts import Facts
from ..parallel import for_each


def attention_transpose_apply(q: Tensor, k: Tensor, lse: Tensor, y: Tensor | None, facts: Facts) -> Tensor:
    """A^T @ y, [B, H, S, R]; with y None the column sums of A, [B, H, S, 1]."""
    batch, heads, queries, keys = facts.shape
    dtype = accumulator(q)
    columns = 1 if y is None else y.shape[-1]
    shift = row_shift(lse, facts, dtype)
    out = q.new_zeros(batch, heads, columns, keys, dtype=dtype)  # keys last: the products then run along A's rows
    adding = Lock()

    def add_share(task: Task) -> None:
        b, h, blocks = task
        pattern = HeadPattern(q, k, shift, task, facts)
        weights = q.new_ones(queries, 1, dtype=dtype) if y is None else real_rows(y, b, h, facts.query_mask, dtype)
        share = q.new_zeros(columns, keys, dtype=dtype)
        for rows, seen in blocks:
            share[:, seen].addmm_(weights[rows].T, pattern.block(rows, seen))
        with adding:  # a head has two shares, so the sum does not depend on which comes first
            out[b, h] += share

    for_each(tasks(facts), add_share)
    return out.mT
