"""attention_apply in one pass over the keys: a program follows a block of rows with a running softmax."""

from __future__ import annotations

from collections.abc import Collection

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import mask_tuple, strided, whole_rows
from ..attention_transpose_apply.triton import attention_transpose_apply
from ..blocks import lift
from ..facts import Facts
from ..launch import config, tuned, widened
from ..score_block import (
    LOG2E,
    head_start,
    key_range,
    load_rows,
    masked_scores,
    raised,
    real_rows,
    store_rows,
    unlifted,
    weighed,
)

MOST_COLUMNS = 256
"""Columns of v that one launch sums in registers; more take several launches."""
UNSEEN = tl.constexpr(-1e30)
"""Log 2 of what counts as 0; finite, so that 0 times it is 0 and not NaN."""


@triton.jit
def _attend(
    Q, K, V, Z, Lse, Entropy, Square, facts, lift, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr
):  # fmt: skip
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the last rows see most keys: begun first, none ends late
    head, batch = tl.program_id(1), tl.program_id(2)
    rows = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    real = real_rows(batch, rows, facts.queries, facts.query_mask)
    q = load_rows(Q, head_start(Q, batch, head), rows, real)
    k_start = head_start(K, batch, head // K.readers)
    if V is not None:
        v_start = head_start(V, batch, head // V.readers)
        z = tl.zeros([BLOCK_QUERIES, V.width], tl.float32)

    # With t = score - highest score so far, in units of log 2, each row's sums of 2^t, 2^t t, 4^t and 2^t v.
    top = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    level = tl.zeros([BLOCK_QUERIES], tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    surprise = tl.zeros([BLOCK_QUERIES], tl.float32)
    squares = tl.zeros([BLOCK_QUERIES], tl.float32)
    last = tl.minimum(facts.queries, (block + 1) * BLOCK_QUERIES) - 1
    low, high = key_range(block * BLOCK_QUERIES, last, facts)
    for start in range(low, high, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        present = real_rows(batch, keys, facts.keys, facts.key_mask)
        k = load_rows(K, k_start, keys, present)
        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = masked_scores(products, batch, head, rows[:, None], keys[None, :], facts)
        before = level
        top, level, fade = raised(top, tl.max(scores, 1))
        t = scores - level[:, None]
        exponentials = tl.exp2(t)
        if Entropy is not None:
            grown = tl.sum(exponentials * tl.maximum(t, UNSEEN), 1)  # a hidden key's t is -inf, and 0 times that is NaN
            surprise = fade * (surprise + (before - level) * total) + grown
        if Square is not None:
            squares = fade * fade * squares + tl.sum(exponentials * exponentials, 1)
        total = fade * total + tl.sum(exponentials, 1)
        if V is not None:
            z = weighed(z, fade, t, load_rows(V, v_start, keys, present), lift)

    empty = (total == 0) | ~real
    log_total = tl.log2(tl.where(empty, 1.0, total))
    log_denominator = log_total
    if facts.sinks is not None:
        sink = tl.load(facts.sinks + head) * LOG2E - level
        larger = tl.maximum(log_total, sink)  # exp2 of either alone may overflow
        log_denominator = larger + tl.log2(tl.exp2(log_total - larger) + tl.exp2(sink - larger))
    weight = tl.where(empty, 0.0, tl.exp2(-log_denominator))
    inside = rows < facts.queries
    at = tl.cast(batch * facts.heads + head, tl.int64) * facts.queries + rows
    tl.store(Lse + at, tl.where(empty, float("-inf"), (level + log_total) / LOG2E), mask=inside)
    if Entropy is not None:
        entropy = (total * log_denominator - surprise) * weight / LOG2E
        tl.store(Entropy + at, tl.where(empty, 0.0, entropy), mask=inside)
    if Square is not None:
        tl.store(Square + at, squares * weight * weight, mask=inside)
    if V is not None:
        store_rows(Z, head_start(Z, batch, head), rows, z * unlifted(weight, lift)[:, None], inside)


_in_half = tuned([
    config(queries=64, keys=32, stages=2),
    config(queries=64, keys=64, stages=3),
    config(queries=128, keys=32, warps=8, stages=2),
    config(queries=128, keys=64, warps=8, stages=3),
    config(queries=128, keys=128, warps=8, stages=2),
])(_attend)  # fmt: skip

# Small blocks, see `widened`.
_in_full = tuned([
    config(queries=64, keys=32, warps=8, stages=2),
    config(queries=32, keys=32, warps=8, stages=2),
    config(queries=32, keys=32, warps=8, stages=1),
    config(queries=16, keys=32, warps=4, stages=1),
])(_attend)  # fmt: skip


def attention_apply(
    q: Tensor, k: Tensor, v: Tensor | None, statistics: Collection[str], facts: Facts
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(z, lse, entropy, square, column mass) as documented in the package; what was not asked for is None."""
    batch, heads, queries, _ = facts.shape
    columns = 0 if v is None else v.shape[-1]
    z = q.new_empty(batch, heads, queries, columns, dtype=torch.float32)
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    entropy = torch.empty_like(lse) if "entropy" in statistics else None
    square = torch.empty_like(lse) if "square" in statistics else None
    told, widen = mask_tuple(facts), widened(q, k)
    queries_told, keys_told = (strided(whole_rows(x), heads, widen=widen) for x in (q, k))

    def launch(v: Tensor | None, z: Tensor) -> None:
        values = None if v is None else strided(whole_rows(v), heads)
        kernel = _in_full if widen or widened(v) else _in_half
        kernel[lambda blocks: (triton.cdiv(queries, blocks["BLOCK_QUERIES"]), heads, batch)](
            queries_told, keys_told, values, None if v is None else strided(z), lse, entropy, square, told, lift(v)
        )

    if lse.numel():
        for part in range(0, max(columns, 1), MOST_COLUMNS):  # later parts write the same statistics again
            some = slice(part, part + MOST_COLUMNS)
            launch(v[..., some] if v is not None and columns else None, z[..., some])
    mass = attention_transpose_apply(q, k, lse, None, facts)[..., 0] if "column_mass" in statistics else None
    return None if v is None else z, lse, entropy, square, mass
