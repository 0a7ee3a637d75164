"""attention_gram_apply in blocks of query rows: a block of the pattern is made once and used for both products."""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from ..blocks import HeadPattern, Task, real_rows, row_shift, tasks
from ..checks import accumulator
from ..facts import Facts
from ..parallel import map_heads


def attention_gram_apply(q: Tensor, k: Tensor, lse: Tensor, x: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
    """(A @ x [B, H, N, R], A^T @ A @ x [B, H, S, R])."""
    batch, heads, queries, keys = facts.shape
    columns = x.shape[-1]
    dtype = accumulator(q)
    shift = row_shift(lse, facts, dtype)
    applied = q.new_zeros(batch, heads, queries, columns, dtype=dtype)

    gram = q.new_zeros(batch, heads, columns, keys, dtype=dtype)
    adding = Lock()

    def head_share(task: Task) -> None:
        """Fill the rows of A @ x; return their contribution to A^T @ A @ x, [R, S], key axis last."""
        b, h, blocks = task
        pattern = HeadPattern(q, k, shift, b, h, facts)
        values = real_rows(x, b, h, facts.key_mask, dtype)
        share = q.new_zeros(columns, keys, dtype=dtype)
        for rows, seen in blocks:
            block = pattern.block(rows, seen)
            z = torch.mm(block, values[seen], out=applied[b, h, rows])
            share[:, seen].addmm_(z.T, block)
        with adding:  # two shares a head at most, so the sum does not depend on which comes first
            gram[b, h] += share

    map_heads(head_share, tasks(facts), batch * heads * queries * keys)
    return applied, gram.mT
