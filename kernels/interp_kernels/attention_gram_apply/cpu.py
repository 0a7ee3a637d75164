"""attention_gram_apply in blocks of query rows: a block of the pattern is made once and used for both products."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import HeadPattern, real_rows, row_blocks, row_shift
from ..checks import accumulator
from ..facts import Facts


def attention_gram_apply(q: Tensor, k: Tensor, lse: Tensor, x: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
    """(A @ x [B, H, N, R], A^T @ A @ x [B, H, S, R])."""
    batch, heads, queries, keys = facts.shape
    dtype = accumulator(q)
    shift = row_shift(lse, facts, dtype)
    applied = q.new_zeros(batch, heads, queries, x.shape[-1], dtype=dtype)
    gram = q.new_zeros(batch, heads, x.shape[-1], keys, dtype=dtype)  # key axis last: its products run along A's rows
    for b in range(batch):
        for h in range(heads):
            pattern = HeadPattern(q, k, shift, b, h, facts)
            values = real_rows(x, b, h, facts.key_mask, dtype)
            for rows, seen in row_blocks(facts):
                block = pattern.block(rows, seen)
                z = torch.mm(block, values[seen], out=applied[b, h, rows])
                gram[b, h, :, seen].addmm_(z.T, block)
    return applied, gram.mT
