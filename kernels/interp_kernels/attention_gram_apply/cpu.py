"""attention_gram_apply in blocks of query rows: a block of the pattern is made once and used for both products."""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from ..blocks import HeadPattern, Task, real_rows, row_shift, tasks
from ..checks import accumulator
from ..facts import Facts
from ..parallel import for_each


def attention_gram_apply(q: Tensor, k: Tensor, lse: Tensor, x: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
    """(A @ x [B, H, N, R], A^T @ A @ x [B, H, S, R])."""
    batch, heads, queries, keys = facts.shape
    dtype = accumulator(q)
    columns = x.shape[-1]
    shift = row_shift(lse, facts, dtype)
    applied = q.new_zeros(batch, heads, queries, columns, dtype=dtype)
    gram = q.new_zeros(batch, heads, columns, keys, dtype=dtype)  # keys last: the products then run along A's rows
    adding = Lock()

    def add_share(task: Task) -> None:
        b, h, blocks = task
        pattern = HeadPattern(q, k, shift, task, facts)
        values = real_rows(x, b, h, facts.key_mask, dtype)
        share = q.new_zeros(columns, keys, dtype=dtype)
        for rows, seen in blocks:
            block = pattern.block(rows, seen)
            applied_rows = torch.mm(block, values[seen], out=applied[b, h, rows])
            share[:, seen].addmm_(applied_rows.T, block)
        with adding:  # a head has two shares, so the sum does not depend on which comes first
            gram[b, h] += share

    for_each(tasks(facts), add_share)
    return applied, gram.mT
