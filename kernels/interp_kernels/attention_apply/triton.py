"""attention_apply in one pass over the keys: a program follows a block of rows with a running softmax."""

from __future__ import annotations

from collections.abc import Collection

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention_transpose_apply.triton import attention_transpose_apply
from ..blocks import HALF_LIFT
from ..facts import Facts
from ..launch import config, power_of_two, tuned
from ..score_block import (
    HIDDEN,
    LOG2E,
    fact_arguments,
    head_start,
    in_fp32,
    key_range,
    load_rows,
    real_rows,
    score_block,
    strided,
    strides,
)

MOST_COLUMNS = 256
"""Columns of v that one launch sums in registers; more take several launches."""


@triton.jit
def _attend(
    Q, K, V, Sinks, Z, Lse, Entropy, Square, H, N, S, R, group, value_group,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, z_row, lift,
    KeyMask, QueryMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
    scale, softcap, offset, window, CAUSAL: tl.constexpr,
    D: tl.constexpr, D_WIDTH: tl.constexpr, WIDTH: tl.constexpr, IN_FP32: tl.constexpr, V_IN_FP32: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the last rows see most keys: begun first, none ends late
    head, batch = tl.program_id(1), tl.program_id(2)
    rows = block * ROWS + tl.arange(0, ROWS)
    real = real_rows(batch, rows, N, QueryMask)
    q = load_rows(head_start(Q, batch, head, q_batch, q_head), rows, real, q_row, D, D_WIDTH, IN_FP32)
    k_start = head_start(K, batch, head // group, k_batch, k_head)
    if V is not None:
        v_start = head_start(V, batch, head // value_group, v_batch, v_head)

    # With t = score - highest score so far, in units of log 2, each row's sums of 2^t, 2^t t, 4^t and 2^t v.
    highest = tl.full([ROWS], HIDDEN, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    surprise = tl.zeros([ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    z = tl.zeros([ROWS, WIDTH], tl.float32)
    low, high = key_range(block * ROWS, tl.minimum(N, (block + 1) * ROWS) - 1, S, offset, window, CAUSAL)
    for start in range(low, high, KEYS):
        keys = start + tl.arange(0, KEYS)
        present = real_rows(batch, keys, S, KeyMask)
        k = load_rows(k_start, keys, present, k_row, D, D_WIDTH, IN_FP32)
        scores = score_block(
            q, k, batch, head, rows, keys, N, S,
            KeyMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
            scale, softcap, offset, window, CAUSAL,
        )  # fmt: skip
        higher = tl.maximum(highest, tl.max(scores, 1))
        fade = tl.exp2(highest - higher)
        t = scores - higher[:, None]
        exponentials = tl.exp2(t)
        if Entropy is not None:
            # a hidden key's t is -inf, and 0 times that is NaN
            grown = tl.sum(exponentials * tl.maximum(t, HIDDEN), 1)
            surprise = fade * (surprise + (highest - higher) * total) + grown
        if Square is not None:
            squares = fade * fade * squares + tl.sum(exponentials * exponentials, 1)
        total = fade * total + tl.sum(exponentials, 1)
        if V is not None:
            v = load_rows(v_start, keys, present, v_row, R, WIDTH, V_IN_FP32)
            z = tl.dot(tl.exp2(t + lift).to(v.dtype), v, z * fade[:, None], input_precision="ieee")
        highest = higher

    empty = (total == 0) | ~real
    log_total = tl.log2(tl.where(empty, 1.0, total))
    log_denominator = log_total
    if Sinks is not None:
        sink = tl.load(Sinks + head) * LOG2E - highest
        larger = tl.maximum(log_total, sink)  # exp2 of either alone may overflow
        log_denominator = larger + tl.log2(tl.exp2(log_total - larger) + tl.exp2(sink - larger))
    weight = tl.where(empty, 0.0, tl.exp2(-log_denominator))
    base = tl.cast(batch * H + head, tl.int64) * N
    tl.store(Lse + base + rows, tl.where(empty, float("-inf"), (highest + log_total) / LOG2E), mask=rows < N)
    if Entropy is not None:
        entropy = (total * log_denominator - surprise) * weight / LOG2E
        tl.store(Entropy + base + rows, tl.where(empty, 0.0, entropy), mask=rows < N)
    if Square is not None:
        tl.store(Square + base + rows, squares * weight * weight, mask=rows < N)
    if V is not None:
        column = tl.arange(0, WIDTH)
        cells = (base + rows)[:, None] * z_row + column[None, :]
        tl.store(Z + cells, z * (weight * tl.exp2(-lift))[:, None], mask=(rows < N)[:, None] & (column < R)[None, :])


_in_half = tuned(
    [
        config(ROWS=64, KEYS=32, stages=2),
        config(ROWS=64, KEYS=64, stages=3),
        config(ROWS=128, KEYS=32, warps=8, stages=2),
        config(ROWS=128, KEYS=64, warps=8, stages=3),
        config(ROWS=128, KEYS=128, warps=8, stages=2),
    ],
    key=["D", "WIDTH", "CAUSAL"],
)(_attend)

# Exact fp32 products run outside the tensor cores and unrolled: larger blocks overflow the registers.
_in_full = tuned(
    [
        config(ROWS=64, KEYS=32, warps=8, stages=2),
        config(ROWS=32, KEYS=32, warps=8, stages=2),
        config(ROWS=32, KEYS=32, warps=8, stages=1),
        config(ROWS=16, KEYS=32, warps=4, stages=1),
    ],
    key=["D", "WIDTH", "CAUSAL"],
)(_attend)


def attention_apply(
    q: Tensor, k: Tensor, v: Tensor | None, statistics: Collection[str], facts: Facts
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(z, lse, entropy, square, column mass) as documented in the package; what was not asked for is None."""
    batch, heads, queries, keys = facts.shape
    columns = 0 if v is None else v.shape[-1]
    z = q.new_empty(batch, heads, queries, columns, dtype=torch.float32)
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    entropy = torch.empty_like(lse) if "entropy" in statistics else None
    square = torch.empty_like(lse) if "square" in statistics else None
    q, k = strided(q), strided(k)

    def launch(v: Tensor | None, z: Tensor) -> None:
        width = 0 if v is None else v.shape[-1]
        kernel = _in_full if in_fp32(q, k) or in_fp32(v) else _in_half
        kernel[lambda blocks: (triton.cdiv(queries, blocks["ROWS"]), heads, batch)](
            q, k, v, None if facts.sinks is None else facts.sinks.float().contiguous(), z, lse, entropy, square,
            H=heads, N=queries, S=keys, R=width, z_row=columns,
            lift=HALF_LIFT if v is not None and v.dtype == torch.float16 and not in_fp32(v) else 0.0,
            group=heads // k.shape[1], value_group=1 if v is None else heads // v.shape[1],
            **strides(q=q, k=k, v=v), **fact_arguments(facts),
            D=q.shape[-1], D_WIDTH=power_of_two(q.shape[-1]), WIDTH=power_of_two(width),
            IN_FP32=in_fp32(q, k), V_IN_FP32=in_fp32(v),
        )  # fmt: skip

    if lse.numel():
        for part in range(0, max(columns, 1), MOST_COLUMNS):  # later parts write the same statistics again
            some = slice(part, part + MOST_COLUMNS)
            launch(strided(v[..., some]) if v is not None and columns else None, z[..., some])
    mass = attention_transpose_apply(q, k, lse, None, facts)[..., 0] if "column_mass" in statistics else None
    return None if v is None else z, lse, entropy, square, mass
