"""decode_step in two launches: attention over parts of the slots, then everything that needs all of them.

The second is small, a few numbers a slot, and changes tensors in place. No program reads what another one writes, and
within a program nothing is read again after it was written, so no barriers and no atomics are needed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Unfinished, strided
from ..launch import config, power_of_two, split, tuned, widened
from ..score_block import LOG2E, attended, capped, head_start, load_rows, raised
from .slots import Evicted, StepCall

PROGRAMS = 256
"""As many as keep a large GPU busy; the slots are cut into parts accordingly."""
LEAST_PART = 256
"""Slots below which a part costs `_finish` more than it spares `_attend`."""
BLOCK_CELLS = 8192
"""Scores that `_finish` handles at a time."""


@tuned([config(keys=64), config(keys=128, warps=8), config(keys=32, stages=1)])
@triton.jit
def _attend(
    Q, K, V, Positions, Padding, Out, n, length, parts, scale, softcap,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Scores in units of log 2 and, over one part of the slots, the sums of 2^(score - peak) and of that times v.

    Q is [B, 1, H, D]: heads are rows.
    """
    part, head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    rows, column = tl.arange(0, BLOCK_QUERIES), tl.arange(0, V.width)
    mine = rows < K.readers
    q = load_rows(Q, head_start(Q, batch, 0), head * K.readers + rows, mine)
    k_start, v_start = head_start(K, batch, head), head_start(V, batch, head)
    positions = head_start(Positions, batch, head)
    row = (
        batch * tl.num_programs(1) + head
    ) * K.readers + rows  # query heads that share a stored head lie side by side
    peak = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    read = tl.zeros([BLOCK_QUERIES, V.width], tl.float32)
    last = tl.minimum(n, (part + 1) * length)
    for start in range(part * length, last, BLOCK_KEYS):
        slots = start + tl.arange(0, BLOCK_KEYS)
        inside = slots < last
        seen = inside
        if Padding is not None:
            position = tl.load(positions + slots.to(tl.int64) * Positions.row, mask=inside, other=0)
            seen = seen & (position >= tl.load(Padding + batch))
        k, v = load_rows(K, k_start, slots, seen), load_rows(V, v_start, slots, seen)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if softcap is not None:
            scores = capped(scores, softcap)
        scores = tl.where(mine[:, None] & seen[None, :], scores * LOG2E, float("-inf"))
        tl.store(Out.scores + row[:, None] * n + slots[None, :], scores, mask=mine[:, None] & inside[None, :])
        peak, total, read = attended(peak, total, read, scores, v, None)
    place = row * parts + part
    tl.store(Out.peak + place, peak, mask=mine)
    tl.store(Out.total + place, total, mask=mine)
    cells = place[:, None] * V.columns + column[None, :]
    tl.store(Out.read + cells, read, mask=mine[:, None] & (column < V.columns)[None, :])


@triton.jit
def _received(Scores, row, mine, slots, n, top, inverse):
    """Attention [slots] that all rows together pay to each of `slots`."""
    cells = mine[:, None] & (slots < n)[None, :]
    scores = tl.load(Scores + row[:, None] * n + slots[None, :], mask=cells, other=float("-inf"))
    return tl.sum(tl.where(mine[:, None], tl.exp2(scores - top[:, None]) * inverse[:, None], 0.0), 0)


@triton.jit
def _replace(X, Lost, batch, head, flat, slot, new):
    """Keep the row at `slot` of a head of X in Lost, and put the row at `new` there."""
    channel, start = tl.arange(0, X.width), head_start(X, batch, head)
    real = channel < X.columns
    coming = tl.load(start + new * X.row + channel * X.column, mask=real, other=0.0)
    going = tl.load(start + slot * X.row + channel * X.column, mask=real, other=0.0)
    tl.store(Lost + flat * X.columns + channel, going, mask=real)
    tl.store(start + slot * X.row + channel * X.column, coming, mask=real)


@triton.jit  # not tuned: that would run it several times, and it changes the cache
def _finish(
    K, V, Mass, Positions, Padding, Sinks, Parts, Z, Lost, n, parts, keep_oldest, keep_newest,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    flat = batch * tl.num_programs(0) + head
    rows, column, lane = tl.arange(0, BLOCK_QUERIES), tl.arange(0, V.width), tl.arange(0, BLOCK_KEYS)
    row, mine = flat * K.readers + rows, rows < K.readers

    # z, from the sums of all parts
    top = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    z = tl.zeros([BLOCK_QUERIES, V.width], tl.float32)
    if Sinks is not None:
        top = tl.load(Sinks + head * K.readers + rows, mask=mine, other=0.0).to(tl.float32) * LOG2E
        total = tl.full([BLOCK_QUERIES], 1.0, tl.float32)
    shown = mine[:, None] & (column < V.columns)[None, :]
    for part in range(parts):
        place = row * parts + part
        peak = tl.load(Parts.peak + place, mask=mine, other=float("-inf"))
        top, level, fade = raised(top, peak)
        weight = tl.exp2(peak - level)
        total = total * fade + weight * tl.load(Parts.total + place, mask=mine, other=0.0)
        read = tl.load(Parts.read + place[:, None] * V.columns + column[None, :], mask=shown, other=0.0)
        z = z * fade[:, None] + weight[:, None] * read
    top = tl.where(top == float("-inf"), 0.0, top)
    inverse = 1.0 / tl.where(mine, total, 1.0)
    tl.store(Z + row[:, None] * V.columns + column[None, :], z * inverse[:, None], mask=shown)

    # the token that goes: in every lane the least attended, of equals the latest, then the same over all lanes
    mass, positions = head_start(Mass, batch, head), head_start(Positions, batch, head)
    last = tl.cast(n - 1, tl.int64)
    new_position = tl.load(positions + last * Positions.row)
    padding = 0
    if Padding is not None:
        padding = tl.load(Padding + batch)
    worth = tl.full([BLOCK_KEYS], float("inf"), tl.float32)
    latest = tl.full([BLOCK_KEYS], -1, tl.int32)
    lost_mass = tl.zeros([BLOCK_KEYS], tl.float32)
    new_mass = tl.zeros([BLOCK_KEYS], tl.float32)
    its_slot = tl.zeros([BLOCK_KEYS], tl.int32)
    for start in range(0, n, BLOCK_KEYS):
        slots = start + lane
        received = _received(Parts.scores, row, mine, slots, n, top, inverse)
        had = received + tl.load(mass + slots.to(tl.int64) * Mass.row, mask=slots < n - 1, other=0.0)
        at = tl.load(positions + slots.to(tl.int64) * Positions.row, mask=slots < n, other=-1).to(tl.int32)
        stays = (at < padding + keep_oldest) | (at > new_position - keep_newest)
        its_worth = tl.where(at < padding, float("-inf"), tl.where(stays, float("inf"), had))
        its_worth = tl.where(slots < n, its_worth, float("inf"))  # what is no slot stands at -1, before all others
        goes = (its_worth < worth) | ((its_worth == worth) & (at > latest))
        worth = tl.where(goes, its_worth, worth)
        latest = tl.where(goes, at, latest)
        lost_mass = tl.where(goes, had, lost_mass)
        its_slot = tl.where(goes, slots, its_slot)
        new_mass += tl.where(slots == n - 1, received, 0.0)
    equals = worth == tl.min(worth, 0)
    position, winner = tl.max(tl.where(equals, latest, -1), 0, return_indices=True)
    slot = tl.sum(tl.where(lane == winner, its_slot, 0), 0).to(tl.int64)
    tl.store(Lost.slot + flat, slot)
    tl.store(Lost.position + flat, position)
    tl.store(Lost.mass + flat, tl.sum(tl.where(lane == winner, lost_mass, 0.0), 0))

    # the new token in its place
    fresh = tl.sum(new_mass, 0)
    for start in range(0, n, BLOCK_KEYS):
        slots = start + lane
        received = _received(Parts.scores, row, mine, slots, n, top, inverse)
        had = received + tl.load(mass + slots.to(tl.int64) * Mass.row, mask=slots < n - 1, other=0.0)
        tl.store(mass + slots.to(tl.int64) * Mass.row, tl.where(slots == slot, fresh, had), mask=slots < n)
    tl.store(positions + slot * Positions.row, new_position)
    _replace(K, Lost.key, batch, head, flat, slot, last)
    _replace(V, Lost.value, batch, head, flat, slot, last)


def decode_step(call: StepCall) -> tuple[Tensor, Evicted]:
    """(z, evicted) as documented in the package."""
    q, keys, values, mass, positions, keep_oldest, keep_newest, padding, scale, softcap, sinks = call
    batch, heads, _, size = q.shape
    stored, n = keys.shape[1:3]
    group, size_v = heads // stored, values.shape[-1]
    parts, length = split(n, batch * stored, LEAST_PART, PROGRAMS)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return q.new_empty(shape, dtype=dtype)

    read, peak, total = empty(batch, heads, parts, size_v), empty(batch, heads, parts), empty(batch, heads, parts)
    unfinished = Unfinished(read, peak, total, empty(batch, heads, n))
    z = empty(batch, heads, 1, size_v)
    lost = Evicted(
        empty(batch, stored, dtype=torch.int64),
        empty(batch, stored, dtype=positions.dtype),
        empty(batch, stored),
        empty(batch, stored, 1, size, dtype=keys.dtype),
        empty(batch, stored, 1, size_v, dtype=values.dtype),
    )
    if not lost.slot.numel():
        return z, lost
    padding = None if padding is None else padding.contiguous()
    widen = widened(keys, values)
    stored_keys, stored_values = (strided(x, heads, widen=widen) for x in (keys, values))
    received, places = strided(mass[..., None]), strided(positions[..., None])
    _attend[parts, stored, batch](
        strided(q.to(keys.dtype).transpose(1, 2), widen=widen), stored_keys, stored_values, places, padding, unfinished,
        n, length, parts, scale, softcap, BLOCK_QUERIES=power_of_two(group),
    )  # fmt: skip
    rows = power_of_two(group, least=1)
    _finish[stored, batch](
        stored_keys, stored_values, received, places, padding, sinks if sinks is None else sinks.contiguous(),
        unfinished, z, lost, n, parts, keep_oldest, keep_newest,
        BLOCK_QUERIES=rows, BLOCK_KEYS=min(power_of_two(n), max(16, BLOCK_CELLS // rows)),
    )  # fmt: skip
    return z, lost
