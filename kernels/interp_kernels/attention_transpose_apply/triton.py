"""attention_transpose_apply with the loops turned round: a program follows a block of keys over the rows that see it.

Every block of A is rebuilt from its rows' log denominators, so nothing is carried along a row and nothing is added
to memory: the sum over rows stays in the program's registers, in one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import mask_tuple, strided, whole_rows
from ..blocks import lift, row_shift
from ..facts import Facts
from ..launch import config, tuned, widened
from ..score_block import head_start, load_rows, masked_scores, real_rows, row_range, store_rows, unlifted

MOST_COLUMNS = 128
"""Columns of y that one launch sums in registers; more take several launches."""


@triton.jit
def _attend_back(Q, K, Y, Shift, Out, facts, lift, BLOCK_KEYS: tl.constexpr, BLOCK_QUERIES: tl.constexpr):
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    keys = block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    present = real_rows(batch, keys, facts.keys, facts.key_mask)
    k = load_rows(K, head_start(K, batch, head // K.readers), keys, present)
    q_start = head_start(Q, batch, head)
    if Y is not None:
        y_start = head_start(Y, batch, head)
    shifts = Shift + tl.cast(batch * facts.heads + head, tl.int64) * facts.queries

    if Out.width == 1:
        total = tl.zeros([BLOCK_KEYS], tl.float32)
    else:
        total = tl.zeros([BLOCK_KEYS, Out.width], tl.float32)
    low, high = row_range(block * BLOCK_KEYS, tl.minimum(facts.keys, (block + 1) * BLOCK_KEYS) - 1, facts)
    for start in range(low, high, BLOCK_QUERIES):
        rows = start + tl.arange(0, BLOCK_QUERIES)
        real = real_rows(batch, rows, facts.queries, facts.query_mask)
        q = load_rows(Q, q_start, rows, real)
        # [keys, rows]: a product that sums over rows then takes the pattern as it is, without a transposition
        products = tl.dot(k, tl.trans(q), input_precision="ieee")
        scores = masked_scores(products, batch, head, rows[None, :], keys[:, None], facts)
        shift = tl.load(shifts + rows, mask=rows < facts.queries, other=0.0)
        if lift is not None:
            shift -= lift
        pattern = tl.exp2(scores - shift[None, :])
        if Y is None:
            total += tl.sum(pattern, 1)
        elif Out.width == 1:
            weight = tl.load(y_start + rows.to(tl.int64) * Y.row, mask=real, other=0.0).to(tl.float32)
            total += tl.sum(pattern * weight[None, :], 1)
        else:
            y = load_rows(Y, y_start, rows, real)
            total = tl.dot(pattern.to(y.dtype), y, total, input_precision="ieee")

    total = unlifted(total, lift)
    out_start = head_start(Out, batch, head)
    if Out.width == 1:
        tl.store(out_start + keys.to(tl.int64) * Out.row, total, mask=keys < facts.keys)
    else:
        store_rows(Out, out_start, keys, total, keys < facts.keys)


_in_half = tuned([
    config(keys=64, queries=64, stages=2),
    config(keys=64, queries=32, stages=3),
    config(keys=128, queries=64, warps=8, stages=2),
    config(keys=128, queries=32, warps=8, stages=3),
])(_attend_back)  # fmt: skip

# Small blocks, see `widened`.
_in_full = tuned([
    config(keys=32, queries=64, warps=8, stages=1),
    config(keys=32, queries=32, warps=8, stages=2),
    config(keys=64, queries=32, warps=8, stages=2),
    config(keys=16, queries=32, warps=4, stages=1),
])(_attend_back)  # fmt: skip


def attention_transpose_apply(q: Tensor, k: Tensor, lse: Tensor, y: Tensor | None, facts: Facts) -> Tensor:
    """A^T @ y, [B, H, S, R]; with y None the column sums of A, [B, H, S, 1]."""
    batch, heads, _, keys = facts.shape
    columns = 1 if y is None else y.shape[-1]
    out = q.new_empty(batch, heads, keys, columns, dtype=torch.float32)
    shift = row_shift(lse, facts, torch.float32).contiguous()
    told, widen = mask_tuple(facts), widened(q, k)
    queries_told, keys_told = (strided(whole_rows(x), heads, widen=widen) for x in (q, k))

    def launch(y: Tensor | None, out: Tensor) -> None:
        kernel = _in_full if widen or widened(y) else _in_half
        kernel[lambda blocks: (triton.cdiv(keys, blocks["BLOCK_KEYS"]), heads, batch)](
            queries_told, keys_told, None if y is None else strided(whole_rows(y)), shift,
            strided(out, least=1 if out.shape[-1] == 1 else 16), told, lift(y),
        )  # fmt: skip

    if out.numel():
        for part in range(0, columns, MOST_COLUMNS):
            some = slice(part, part + MOST_COLUMNS)
            launch(None if y is None else y[..., some], out[..., some])
    return out
