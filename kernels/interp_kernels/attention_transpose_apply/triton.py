"""attention_transpose_apply with the loops turned round: a program follows a block of keys over the rows that see it.

Every block of A is rebuilt from its rows' log denominators, so nothing is carried along a row and nothing is added
to memory: the sum over rows stays in the program's registers, in one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..blocks import HALF_LIFT, row_shift
from ..facts import Facts
from ..launch import config, power_of_two, tuned
from ..score_block import (
    fact_arguments,
    head_start,
    in_fp32,
    load_rows,
    real_rows,
    row_range,
    score_block_transposed,
    strided,
    strides,
)

MOST_COLUMNS = 128
"""Columns of y that one launch sums in registers; more take several launches."""


@triton.jit
def _attend_back(
    Q, K, Y, Shift, Out, H, N, S, R, group, lift,
    q_batch, q_head, q_row, k_batch, k_head, k_row, y_batch, y_head, y_row, out_row,
    KeyMask, QueryMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
    scale, softcap, offset, window, CAUSAL: tl.constexpr,
    D: tl.constexpr, D_WIDTH: tl.constexpr, WIDTH: tl.constexpr, IN_FP32: tl.constexpr, Y_IN_FP32: tl.constexpr,
    KEYS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    keys = block * KEYS + tl.arange(0, KEYS)
    present = real_rows(batch, keys, S, KeyMask)
    k_start = head_start(K, batch, head // group, k_batch, k_head)
    k = load_rows(k_start, keys, present, k_row, D, D_WIDTH, IN_FP32)
    q_start = head_start(Q, batch, head, q_batch, q_head)
    if Y is not None:
        y_start = head_start(Y, batch, head, y_batch, y_head)
    base = tl.cast(batch * H + head, tl.int64)

    if WIDTH == 1:
        total = tl.zeros([KEYS], tl.float32)
    else:
        total = tl.zeros([KEYS, WIDTH], tl.float32)
    low, high = row_range(block * KEYS, tl.minimum(S, (block + 1) * KEYS) - 1, N, offset, window, CAUSAL)
    for start in range(low, high, ROWS):
        rows = start + tl.arange(0, ROWS)
        real = real_rows(batch, rows, N, QueryMask)
        q = load_rows(q_start, rows, real, q_row, D, D_WIDTH, IN_FP32)
        scores = score_block_transposed(
            q, k, batch, head, rows, keys, N, S,
            KeyMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
            scale, softcap, offset, window, CAUSAL,
        )  # fmt: skip
        shift = tl.load(Shift + base * N + rows, mask=rows < N, other=0.0)
        pattern = tl.exp2(scores - (shift - lift)[None, :])  # [keys, rows]
        if Y is None:
            total += tl.sum(pattern, 1)
        elif WIDTH == 1:
            weight = tl.load(y_start + rows.to(tl.int64) * y_row, mask=real, other=0.0).to(tl.float32)
            total += tl.sum(pattern * weight[None, :], 1)
        else:
            y = load_rows(y_start, rows, real, y_row, R, WIDTH, Y_IN_FP32)
            total = tl.dot(pattern.to(y.dtype), y, total, input_precision="ieee")

    total = total * tl.exp2(-lift)
    if WIDTH == 1:
        tl.store(Out + (base * S + keys) * out_row, total, mask=keys < S)
    else:
        column = tl.arange(0, WIDTH)
        cells = (base * S + keys)[:, None] * out_row + column[None, :]
        tl.store(Out + cells, total, mask=(keys < S)[:, None] & (column < R)[None, :])


_in_half = tuned(
    [
        config(KEYS=64, ROWS=64, stages=2),
        config(KEYS=64, ROWS=32, stages=3),
        config(KEYS=128, ROWS=64, warps=8, stages=2),
        config(KEYS=128, ROWS=32, warps=8, stages=3),
    ],
    key=["D", "WIDTH", "CAUSAL"],
)(_attend_back)

# Exact fp32 products run outside the tensor cores and unrolled: larger blocks overflow the registers.
_in_full = tuned(
    [
        config(KEYS=32, ROWS=64, warps=8, stages=1),
        config(KEYS=32, ROWS=32, warps=8, stages=2),
        config(KEYS=64, ROWS=32, warps=8, stages=2),
        config(KEYS=16, ROWS=32, warps=4, stages=1),
    ],
    key=["D", "WIDTH", "CAUSAL"],
)(_attend_back)


def attention_transpose_apply(q: Tensor, k: Tensor, lse: Tensor, y: Tensor | None, facts: Facts) -> Tensor:
    """A^T @ y, [B, H, S, R]; with y None the column sums of A, [B, H, S, 1]."""
    batch, heads, queries, keys = facts.shape
    columns = 1 if y is None else y.shape[-1]
    out = q.new_empty(batch, heads, keys, columns, dtype=torch.float32)
    shift = row_shift(lse, facts, torch.float32).contiguous()
    q, k = strided(q), strided(k)

    def launch(y: Tensor | None, out: Tensor) -> None:
        width = out.shape[-1]
        kernel = _in_full if in_fp32(q, k) or in_fp32(y) else _in_half
        kernel[lambda blocks: (triton.cdiv(keys, blocks["KEYS"]), heads, batch)](
            q, k, y, shift, out, H=heads, N=queries, S=keys, R=width, out_row=columns, group=heads // k.shape[1],
            lift=HALF_LIFT if y is not None and y.dtype == torch.float16 else 0.0,
            **strides(q=q, k=k, y=y), **fact_arguments(facts),
            D=q.shape[-1], D_WIDTH=power_of_two(q.shape[-1]), WIDTH=1 if width == 1 else power_of_two(width),
            IN_FP32=in_fp32(q, k), Y_IN_FP32=in_fp32(y),
        )  # fmt: skip

    if out.numel():
        for part in range(0, columns, MOST_COLUMNS):
            some = slice(part, part + MOST_COLUMNS)
            launch(None if y is None else strided(y[..., some]), out[..., some])
    return out
