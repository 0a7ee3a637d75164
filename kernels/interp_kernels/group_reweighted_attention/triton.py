"""group_reweighted_attention on a GPU: the groups' masses, then A with scaled cells; or both groups and values at once.

`_shares` and `_reweighted` are the two passes, for many rows. `_parts` is the one pass, for few rows: attention in
which every row stands once for each group, and sees that group's keys alone. Its copies of a row share the tile of keys
that was read, and few rows leave a tile's rows free in any case; every group has its own running maximum, so one that
holds little is as precise as one that holds almost all.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..blocks import HALF_LIFT
from ..facts import Facts
from ..launch import config, power_of_two, tuned
from ..score_block import (
    LOG2E,
    fact_arguments,
    head_start,
    in_fp32,
    key_range,
    load_rows,
    raised,
    real_rows,
    score_block,
    strided,
    strides,
)
from .edit import Edit
from .forms import reweight, rounds_to_half

FEW_ROWS = 16
PIECE = 512
"""Keys that one program of the one pass reads when rows are few: a GPU is filled by pieces of the keys then."""


def group_reweighted_attention(
    q: Tensor, k: Tensor, v: Tensor, edit: Edit, facts: Facts
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, lse, masses) as documented in the package."""
    return reweight(group_sums, reweighted_sum, q, k, v, edit, facts)


TABLE = [
    config(BLOCK_M=32, BLOCK_N=32),
    config(BLOCK_M=64, BLOCK_N=32),
    config(BLOCK_M=64, BLOCK_N=64),
    config(BLOCK_M=128, BLOCK_N=64, warps=8),
    config(BLOCK_M=128, BLOCK_N=64, warps=8, stages=3),
]


@tuned(TABLE, key=["D", "G"])
@triton.jit
def _shares(
    Q, K, Groups, Share, Lse, N, S, H, kv_ratio, group_batch, group_head,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    KeyMask, QueryMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
    scale, softcap, offset, window,
    D: tl.constexpr, D_WIDTH: tl.constexpr, G: tl.constexpr, LANES: tl.constexpr,
    CAUSAL: tl.constexpr, IN_FP32: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    query_base = (batch * H + head) * N
    k_start = head_start(K, batch, head // kv_ratio, k_batch, k_head)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, LANES)
    kept = real_rows(batch, rows, N, QueryMask)
    q = load_rows(head_start(Q, batch, head, q_batch, q_head), rows, kept, q_row, D, D_WIDTH, IN_FP32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK_M, LANES], tl.float32)
    low, high = key_range(block * BLOCK_M, tl.minimum(block * BLOCK_M + BLOCK_M, N) - 1, S, offset, window, CAUSAL)
    for start in range(low, high, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = load_rows(k_start, keys, keys < S, k_row, D, D_WIDTH, IN_FP32)
        group = tl.load(Groups + batch * group_batch + head * group_head + keys, mask=keys < S, other=0)
        scores = score_block(
            q, k, batch, head, rows, keys, N, S,
            KeyMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
            scale, softcap, offset, window, CAUSAL,
        )  # fmt: skip
        top, level, fade = raised(top, tl.max(scores, 1))
        p = tl.exp2(scores - level[:, None])
        sums = sums * fade[:, None]
        for g in tl.static_range(G):
            of_group = tl.sum(tl.where((group == g)[None, :], p, 0.0), 1)
            sums += tl.where((lane == g)[None, :], of_group[:, None], 0.0)
    total = tl.sum(sums, 1)
    some = kept & (total > 0.0)
    total = tl.where(some, total, 1.0)
    share = tl.where(some[:, None], sums / total[:, None], 0.0)
    lse = tl.where(some, (top + tl.log2(total)) / LOG2E, float("-inf"))
    inside = (rows < N)[:, None] & (lane < G)[None, :]
    tl.store(Share + (query_base + rows)[:, None] * G + lane[None, :], share, mask=inside)
    tl.store(Lse + query_base + rows, lse, mask=rows < N)


@tuned(TABLE, key=["D", "R", "G"])
@triton.jit
def _reweighted(
    Q, K, V, Groups, Scaling, Lse, Out, N, S, H, kv_ratio, v_ratio, group_batch, group_head,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    KeyMask, QueryMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
    scale, softcap, offset, window,
    D: tl.constexpr, D_WIDTH: tl.constexpr, R: tl.constexpr, R_WIDTH: tl.constexpr, G: tl.constexpr,
    CAUSAL: tl.constexpr, IN_FP32: tl.constexpr, V_IN_FP32: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    query_base = (batch * H + head) * N
    k_start = head_start(K, batch, head // kv_ratio, k_batch, k_head)
    v_start = head_start(V, batch, head // v_ratio, v_batch, v_head)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, R_WIDTH)
    kept = real_rows(batch, rows, N, QueryMask)
    q = load_rows(head_start(Q, batch, head, q_batch, q_head), rows, kept, q_row, D, D_WIDTH, IN_FP32)
    lse = tl.load(Lse + query_base + rows, mask=kept, other=float("-inf"))
    some = lse > float("-inf")
    shift = tl.where(some, lse * LOG2E, 0.0)
    scaling = Scaling + (query_base + rows) * G
    z = tl.zeros([BLOCK_M, R_WIDTH], tl.float32)
    low, high = key_range(block * BLOCK_M, tl.minimum(block * BLOCK_M + BLOCK_M, N) - 1, S, offset, window, CAUSAL)
    for start in range(low, high, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        real = real_rows(batch, keys, S, KeyMask)  # padding's values may be NaN, which 0 * v would keep
        k = load_rows(k_start, keys, real, k_row, D, D_WIDTH, IN_FP32)
        v = load_rows(v_start, keys, real, v_row, R, R_WIDTH, V_IN_FP32)
        group = tl.load(Groups + batch * group_batch + head * group_head + keys, mask=keys < S, other=0)
        scores = score_block(
            q, k, batch, head, rows, keys, N, S,
            KeyMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
            scale, softcap, offset, window, CAUSAL,
        )  # fmt: skip
        scaled = tl.exp2(scores - shift[:, None])
        factor = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for g in tl.static_range(G):
            of_group = tl.load(scaling + g, mask=some, other=0.0)
            factor = tl.where((group == g)[None, :], of_group[:, None], factor)
        z += tl.dot((scaled * factor).to(v.dtype), v, input_precision="ieee")
    inside = (rows < N)[:, None] & (column < R)[None, :]
    tl.store(Out + (query_base + rows)[:, None] * R + column[None, :], z, mask=inside)


@tuned(
    [
        config(BLOCK_M=16, BLOCK_N=32),
        config(BLOCK_M=16, BLOCK_N=64),
        config(BLOCK_M=32, BLOCK_N=64),
        config(BLOCK_M=64, BLOCK_N=64),
    ],
    key=["D", "R", "LANES"],
)
@triton.jit
def _parts(
    Q, K, V, Groups, Part, PartLse, N, S, H, kv_ratio, v_ratio, group_batch, group_head, pieces, piece_keys,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    KeyMask, QueryMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
    scale, softcap, offset, window,
    lift, D: tl.constexpr, D_WIDTH: tl.constexpr, R: tl.constexpr, R_WIDTH: tl.constexpr, G: tl.constexpr,
    LANES: tl.constexpr, CAUSAL: tl.constexpr, IN_FP32: tl.constexpr, V_IN_FP32: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    block, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query_base = (batch * H + head) * N
    k_start = head_start(K, batch, head // kv_ratio, k_batch, k_head)
    v_start = head_start(V, batch, head // v_ratio, v_batch, v_head)
    copies = block * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, lane = copies // LANES, copies % LANES
    column = tl.arange(0, R_WIDTH)
    kept = real_rows(batch, rows, N, QueryMask)
    q = load_rows(head_start(Q, batch, head, q_batch, q_head), rows, kept, q_row, D, D_WIDTH, IN_FP32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    y = tl.zeros([BLOCK_M, R_WIDTH], tl.float32)
    first, last = block * BLOCK_M // LANES, tl.minimum((block * BLOCK_M + BLOCK_M - 1) // LANES, N - 1)
    low, high = key_range(first, last, S, offset, window, CAUSAL)
    low, high = tl.maximum(low, piece * piece_keys), tl.minimum(high, (piece + 1) * piece_keys)
    for start in range(low, high, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        real = real_rows(batch, keys, S, KeyMask)  # padding's values may be NaN, which 0 * v would keep
        k = load_rows(k_start, keys, real, k_row, D, D_WIDTH, IN_FP32)
        v = load_rows(v_start, keys, real, v_row, R, R_WIDTH, V_IN_FP32)
        group = tl.load(Groups + batch * group_batch + head * group_head + keys, mask=keys < S, other=0)
        scores = score_block(
            q, k, batch, head, rows, keys, N, S,
            KeyMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
            scale, softcap, offset, window, CAUSAL,
        )  # fmt: skip
        mine = (keys < high)[None, :] & (group[None, :] == lane[:, None])
        scores = tl.where(mine, scores, float("-inf"))
        top, level, fade = raised(top, tl.max(scores, 1))
        t = scores - level[:, None]
        total = total * fade + tl.sum(tl.exp2(t), 1)
        y = y * fade[:, None] + tl.dot(tl.exp2(t + lift).to(v.dtype), v, input_precision="ieee")
    some = kept & (total > 0.0)
    total = tl.where(some, total, 1.0)
    y = tl.where(some[:, None], y * (tl.exp2(-lift) / total)[:, None], 0.0)
    lse = tl.where(some, top + tl.log2(total), float("-inf"))
    inside = (rows < N) & (lane < G)
    place = (piece * tl.num_programs(2).to(tl.int64) * H * N + query_base + rows) * G + lane
    tl.store(Part + place[:, None] * R + column[None, :], y, mask=inside[:, None] & (column < R)[None, :])
    tl.store(PartLse + place, lse, mask=inside)


def group_sums(
    q: Tensor, k: Tensor, v: Tensor | None, edit: Edit, facts: Facts
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Each group's part of A @ v [B, H, N, G, R] (None without v) and of A's row sum [B, H, N, G], and lse."""
    if v is not None:
        return _one_pass(q, k, v, edit, facts)
    batch, heads, queries, _ = facts.shape
    shares = q.new_empty(batch, heads, queries, edit.count, dtype=torch.float32)
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    if lse.numel():
        _shares[lambda block: (triton.cdiv(queries, block["BLOCK_M"]), heads, batch)](
            Share=shares, Lse=lse, LANES=power_of_two(edit.count, 2), **_arguments(q, k, edit, facts)
        )
    return None, shares, lse


def reweighted_sum(q: Tensor, k: Tensor, v: Tensor, edit: Edit, scaling: Tensor, lse: Tensor, facts: Facts) -> Tensor:
    """A @ v with A's cells scaled by row and group [B, H, N, G]: [B, H, N, R]."""
    batch, heads, queries, _ = facts.shape
    z = q.new_empty(batch, heads, queries, v.shape[-1], dtype=torch.float32)
    if z.numel():
        _reweighted[lambda block: (triton.cdiv(queries, block["BLOCK_M"]), heads, batch)](
            Scaling=scaling.contiguous(), Lse=lse, Out=z, **_value_arguments(v, heads), **_arguments(q, k, edit, facts)
        )
    return z


def _one_pass(q: Tensor, k: Tensor, v: Tensor, edit: Edit, facts: Facts) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, keys = facts.shape
    pieces = max(1, triton.cdiv(keys, PIECE)) if queries <= FEW_ROWS else 1
    lanes = power_of_two(edit.count, 1)
    parts = q.new_empty(pieces, batch, heads, queries, edit.count, v.shape[-1], dtype=torch.float32)
    part_lse = q.new_empty(parts.shape[:-1], dtype=torch.float32)
    if part_lse.numel():
        _parts[lambda block: (triton.cdiv(queries * lanes, block["BLOCK_M"]) * pieces, heads, batch)](
            Part=parts, PartLse=part_lse, LANES=lanes, pieces=pieces, piece_keys=PIECE if pieces > 1 else keys,
            lift=HALF_LIFT if rounds_to_half(v) else 0.0,
            **_value_arguments(v, heads), **_arguments(q, k, edit, facts),
        )  # fmt: skip
    top = part_lse.amax((0, -1)).clamp(min=torch.finfo(torch.float32).min)  # an empty row's -inf would give NaN
    weights = torch.exp2(part_lse - top[..., None])
    total = weights.sum((0, -1))
    weights *= torch.where(total > 0, 1 / total, 0.0)[..., None]
    return (parts * weights[..., None]).sum(0), weights.sum(0), (top + total.log2()) / LOG2E.value


def _arguments(q: Tensor, k: Tensor, edit: Edit, facts: Facts) -> dict[str, Any]:
    """What all three kernels are told."""
    _, heads, queries, keys = facts.shape
    q, k = strided(q), strided(k)
    groups = edit.groups.to(torch.uint8).contiguous()
    return {
        "Q": q,
        "K": k,
        "Groups": groups,
        "group_batch": groups.stride(0),
        "group_head": 0 if groups.shape[1] == 1 else keys,
        "N": queries,
        "S": keys,
        "H": heads,
        "kv_ratio": heads // k.shape[1],
        "D": q.shape[-1],
        "D_WIDTH": power_of_two(q.shape[-1]),
        "G": edit.count,
        "IN_FP32": in_fp32(q, k),
        **strides(q=q, k=k),
        **fact_arguments(facts),
    }


def _value_arguments(v: Tensor, heads: int) -> dict[str, Any]:
    v = strided(v)
    return {
        "V": v,
        "v_ratio": heads // v.shape[1],
        "R": v.shape[-1],
        "R_WIDTH": power_of_two(v.shape[-1]),
        "V_IN_FP32": in_fp32(v),
        **strides(v=v),
    }
