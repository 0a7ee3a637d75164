"""group_reweighted_attention on a GPU: the groups' masses, then A with scaled cells; or both groups and values at once.

`_shares` and `_reweighted` are the two passes, for many rows. `_parts` is the one pass, for few rows: attention in
which every row stands once for each group, and sees that group's keys alone. Its copies of a row share the tile of keys
that was read, and few rows leave a tile's rows free in any case; every group has its own running maximum, so one that
holds little is as precise as one that holds almost all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Strided, kind, mask_tuple, strided, whole_rows
from ..blocks import lift
from ..facts import Facts
from ..launch import config, power_of_two, split, tuned, widened
from ..score_block import (
    LOG2E,
    attended,
    head_start,
    key_range,
    load_rows,
    masked_scores,
    raised,
    real_rows,
    store_rows,
    unlifted,
)
from .edit import Edit
from .forms import reweight

PROGRAMS = 2048
"""As many as keep a large GPU busy; with few rows, the one pass cuts the keys into parts accordingly."""
LEAST_PART = 512
"""Keys below which a part is not worth a program."""


class _Groups(NamedTuple):
    """The group of each key, bytes [B, H or 1, S]."""

    x: Tensor
    batch: int
    head: int
    count: tl.constexpr
    """G."""
    width: tl.constexpr
    """The power of two in which a kernel holds a number for each group."""

    @property
    def dtype(self) -> str:
        return kind(self)


def group_reweighted_attention(
    q: Tensor, k: Tensor, v: Tensor, edit: Edit, facts: Facts
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, lse, masses) as documented in the package."""
    return reweight(group_sums, reweighted_sum, q, k, v, edit, facts)


TABLE = [
    config(queries=32, keys=32),
    config(queries=64, keys=32),
    config(queries=64, keys=64),
    config(queries=128, keys=64, warps=8),
    config(queries=128, keys=64, warps=8, stages=3),
]


@triton.jit
def _groups_of(Groups, batch, head, keys, N):
    """The groups of `keys`; 0 for those beyond the last."""
    start = Groups.x + tl.cast(batch, tl.int64) * Groups.batch + tl.cast(head, tl.int64) * Groups.head
    return tl.load(start + keys, mask=keys < N, other=0)


@tuned(TABLE)
@triton.jit
def _shares(Q, K, Groups, Share, Lse, facts, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr):
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, lane = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES), tl.arange(0, Groups.width)
    kept = real_rows(batch, rows, facts.queries, facts.query_mask)
    q = load_rows(Q, head_start(Q, batch, head), rows, kept)
    k_start = head_start(K, batch, head // K.readers)
    top = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK_QUERIES, Groups.width], tl.float32)
    last = tl.minimum(facts.queries, (block + 1) * BLOCK_QUERIES) - 1
    low, high = key_range(block * BLOCK_QUERIES, last, facts)
    for start in range(low, high, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        k = load_rows(K, k_start, keys, keys < facts.keys)
        group = _groups_of(Groups, batch, head, keys, facts.keys)
        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = masked_scores(products, batch, head, rows[:, None], keys[None, :], facts)
        top, level, fade = raised(top, tl.max(scores, 1))
        p = tl.exp2(scores - level[:, None])
        sums = sums * fade[:, None]
        for g in tl.static_range(Groups.count):
            of_group = tl.sum(tl.where((group == g)[None, :], p, 0.0), 1)
            sums += tl.where((lane == g)[None, :], of_group[:, None], 0.0)
    total = tl.sum(sums, 1)
    some = kept & (total > 0.0)
    total = tl.where(some, total, 1.0)
    share = tl.where(some[:, None], sums / total[:, None], 0.0)
    lse = tl.where(some, (top + tl.log2(total)) / LOG2E, float("-inf"))
    inside = rows < facts.queries
    at = (batch.to(tl.int64) * facts.heads + head) * facts.queries + rows
    cells = at[:, None] * Groups.count + lane[None, :]
    tl.store(Share + cells, share, mask=inside[:, None] & (lane < Groups.count)[None, :])
    tl.store(Lse + at, lse, mask=inside)


@tuned(TABLE)
@triton.jit
def _reweighted(Q, K, V, Groups, Scaling, Lse, Out, facts, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr):
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    kept = real_rows(batch, rows, facts.queries, facts.query_mask)
    q = load_rows(Q, head_start(Q, batch, head), rows, kept)
    k_start, v_start = head_start(K, batch, head // K.readers), head_start(V, batch, head // V.readers)
    at = (batch.to(tl.int64) * facts.heads + head) * facts.queries + rows
    lse = tl.load(Lse + at, mask=kept, other=float("-inf"))
    some = lse > float("-inf")
    shift = tl.where(some, lse * LOG2E, 0.0)
    z = tl.zeros([BLOCK_QUERIES, V.width], tl.float32)
    last = tl.minimum(facts.queries, (block + 1) * BLOCK_QUERIES) - 1
    low, high = key_range(block * BLOCK_QUERIES, last, facts)
    for start in range(low, high, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        real = real_rows(batch, keys, facts.keys, facts.key_mask)  # padding's values may be NaN, which 0 * v would keep
        k, v = load_rows(K, k_start, keys, real), load_rows(V, v_start, keys, real)
        group = _groups_of(Groups, batch, head, keys, facts.keys)
        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = masked_scores(products, batch, head, rows[:, None], keys[None, :], facts)
        scaled = tl.exp2(scores - shift[:, None])
        factor = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], tl.float32)
        for g in tl.static_range(Groups.count):
            of_group = tl.load(Scaling + at * Groups.count + g, mask=some, other=0.0)
            factor = tl.where((group == g)[None, :], of_group[:, None], factor)
        z += tl.dot((scaled * factor).to(v.dtype), v, input_precision="ieee")
    store_rows(Out, head_start(Out, batch, head), rows, z, rows < facts.queries)


@tuned([
    config(queries=16, keys=32),
    config(queries=16, keys=64),
    config(queries=32, keys=64),
    config(queries=64, keys=64),
])  # fmt: skip
@triton.jit
def _parts(
    Q, K, V, Groups, Part, PartLse, facts, lift, parts, length, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr
):  # fmt: skip
    block, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    head, batch = tl.program_id(1), tl.program_id(2)
    copies = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    rows, lane, column = copies // Groups.width, copies % Groups.width, tl.arange(0, V.width)
    kept = real_rows(batch, rows, facts.queries, facts.query_mask)
    q = load_rows(Q, head_start(Q, batch, head), rows, kept)
    k_start, v_start = head_start(K, batch, head // K.readers), head_start(V, batch, head // V.readers)
    top = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    y = tl.zeros([BLOCK_QUERIES, V.width], tl.float32)
    first = block * BLOCK_QUERIES // Groups.width
    last = tl.minimum(facts.queries - 1, (block * BLOCK_QUERIES + BLOCK_QUERIES - 1) // Groups.width)
    low, high = key_range(first, last, facts)
    low, high = tl.maximum(low, part * length), tl.minimum(high, (part + 1) * length)
    for start in range(low, high, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        real = real_rows(batch, keys, facts.keys, facts.key_mask)  # padding's values may be NaN, which 0 * v would keep
        k, v = load_rows(K, k_start, keys, real), load_rows(V, v_start, keys, real)
        group = _groups_of(Groups, batch, head, keys, facts.keys)
        mine = (keys < high)[None, :] & (group[None, :] == lane[:, None])
        products = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = masked_scores(products, batch, head, rows[:, None], keys[None, :], facts)
        scores = tl.where(mine, scores, float("-inf"))
        top, total, y = attended(top, total, y, scores, v, lift)
    some = kept & (total > 0.0)
    total = tl.where(some, total, 1.0)
    y = tl.where(some[:, None], y * unlifted(1 / total, lift)[:, None], 0.0)
    lse = tl.where(some, top + tl.log2(total), float("-inf"))
    inside = (rows < facts.queries) & (lane < Groups.count)
    text = part * tl.num_programs(2).to(tl.int64) + batch
    place = ((text * facts.heads + head) * facts.queries + rows) * Groups.count + lane
    cells = place[:, None] * V.columns + column[None, :]
    tl.store(Part + cells, y, mask=inside[:, None] & (column < V.columns)[None, :])
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
        _shares[lambda block: (triton.cdiv(queries, block["BLOCK_QUERIES"]), heads, batch)](
            *_pairs(q, k, heads), _told(edit.groups, edit.count, least=2), shares, lse, mask_tuple(facts)
        )
    return None, shares, lse


def reweighted_sum(q: Tensor, k: Tensor, v: Tensor, edit: Edit, scaling: Tensor, lse: Tensor, facts: Facts) -> Tensor:
    """A @ v with A's cells scaled by row and group [B, H, N, G]: [B, H, N, R]."""
    batch, heads, queries, _ = facts.shape
    z = q.new_empty(batch, heads, queries, v.shape[-1], dtype=torch.float32)
    if z.numel():
        _reweighted[lambda block: (triton.cdiv(queries, block["BLOCK_QUERIES"]), heads, batch)](
            *_pairs(q, k, heads), strided(whole_rows(v), heads), _told(edit.groups, edit.count),
            scaling.contiguous(), lse, strided(z), mask_tuple(facts),
        )  # fmt: skip
    return z


def _one_pass(q: Tensor, k: Tensor, v: Tensor, edit: Edit, facts: Facts) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, keys = facts.shape
    groups = _told(edit.groups, edit.count)
    rows = queries * groups.width.value
    parts, length = split(keys, batch * heads * triton.cdiv(rows, 64), LEAST_PART, PROGRAMS)
    y = q.new_empty(parts, batch, heads, queries, edit.count, v.shape[-1], dtype=torch.float32)
    y_lse = q.new_empty(y.shape[:-1], dtype=torch.float32)
    if y_lse.numel():
        _parts[lambda block: (triton.cdiv(rows, block["BLOCK_QUERIES"]) * parts, heads, batch)](
            *_pairs(q, k, heads), strided(whole_rows(v), heads), groups, y, y_lse, mask_tuple(facts),
            lift(v), parts, length,
        )  # fmt: skip
    top = y_lse.amax((0, -1)).clamp(min=torch.finfo(torch.float32).min)  # an empty row's -inf would give NaN
    weights = torch.exp2(y_lse - top[..., None])
    total = weights.sum((0, -1))
    weights *= torch.where(total > 0, 1 / total, 0.0)[..., None]
    return (y * weights[..., None]).sum(0), weights.sum(0), (top + total.log2()) / LOG2E.value


def _pairs(q: Tensor, k: Tensor, heads: int) -> tuple[Strided, Strided]:
    widen = widened(q, k)
    return strided(whole_rows(q), widen=widen), strided(whole_rows(k), heads, widen=widen)


def _told(groups: Tensor, count: int, least: int = 1) -> _Groups:
    groups = groups.to(torch.uint8).contiguous()
    of_head = 0 if groups.shape[1] == 1 else groups.stride(1)
    return _Groups(groups, groups.stride(0), of_head, tl.constexpr(count), tl.constexpr(power_of_two(count, least)))
