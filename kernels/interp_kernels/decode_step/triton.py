"""decode_step in two launches: attention over parts of the slots, then everything that needs all of them.

The second is small, a few numbers a slot, and changes tensors in place. No program reads what another one writes, and
within a program nothing is read again after it was written, so no barriers and no atomics are needed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import config, exact, power_of_two, split, tuned
from ..score_block import LOG2E, capped, raised
from .slots import Evicted, StepCall

PROGRAMS = 256
"""As many as keep a large GPU busy; the slots are cut into parts accordingly."""
LEAST_PART = 256
"""Slots below which a part costs `_finish` more than it spares `_attend`."""
BLOCK_CELLS = 8192
"""Scores that `_finish` handles at a time."""


@tuned([config(BLOCK=64), config(BLOCK=128, warps=8), config(BLOCK=32, stages=1)], key=["D", "DV"])
@triton.jit
def _attend(
    Q, K, V, Positions, Padding, Scores, Sums, Top, Total, Hs, n, length, parts, scale, softcap,
    k_batch, k_head, k_slot, k_channel, v_batch, v_head, v_slot, v_channel, p_batch, p_head, p_slot,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, DV: tl.constexpr,
    WIDTH_V: tl.constexpr, IN_FP32: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scores in units of log 2 and, over one part of the slots, the sums of 2^(score - top) and of that times v."""
    part, head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    rows, channel, column = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, WIDTH_V)
    row = (batch * Hs + head) * GROUP + rows  # query heads that share a stored head lie side by side
    mine = rows < GROUP
    q = tl.load(Q + row[:, None] * D + channel[None, :], mask=mine[:, None] & (channel < D)[None, :], other=0.0)
    if IN_FP32:
        q = q.to(tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, WIDTH_V], tl.float32)
    last = tl.minimum(n, (part + 1) * length)
    for start in range(part * length, last, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        inside = slots < last
        seen, far = inside, slots.to(tl.int64)
        if Padding is not None:
            position = tl.load(Positions + batch * p_batch + head * p_head + far * p_slot, mask=inside, other=0)
            seen = seen & (position >= tl.load(Padding + batch))
        theirs = batch * k_batch + head * k_head + far[:, None] * k_slot + channel[None, :] * k_channel
        k = tl.load(K + theirs, mask=seen[:, None] & (channel < D)[None, :], other=0.0)
        theirs = batch * v_batch + head * v_head + far[:, None] * v_slot + column[None, :] * v_channel
        v = tl.load(V + theirs, mask=seen[:, None] & (column < DV)[None, :], other=0.0)
        if IN_FP32:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = capped(tl.dot(q, tl.trans(k), input_precision="ieee") * scale, softcap)
        scores = tl.where(mine[:, None] & seen[None, :], scores * LOG2E, float("-inf"))
        tl.store(Scores + row[:, None] * n + slots[None, :], scores, mask=mine[:, None] & inside[None, :])
        top, level, fade = raised(top, tl.max(scores, 1))
        p = tl.exp2(scores - level[:, None])
        total = total * fade + tl.sum(p, 1)
        summed = summed * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    place = row * parts + part
    tl.store(Top + place, top, mask=mine)
    tl.store(Total + place, total, mask=mine)
    tl.store(Sums + place[:, None] * DV + column[None, :], summed, mask=mine[:, None] & (column < DV)[None, :])


@triton.jit
def _received(Scores, row, mine, slots, n, top, inverse):
    """Attention [slots] that all rows together pay to each of `slots`."""
    cells = mine[:, None] & (slots < n)[None, :]
    scores = tl.load(Scores + row[:, None] * n + slots[None, :], mask=cells, other=float("-inf"))
    return tl.sum(tl.where(mine[:, None], tl.exp2(scores - top[:, None]) * inverse[:, None], 0.0), 0)


@triton.jit
def _replace(X, Lost, flat, first, slot, new, stride, channel_stride, D: tl.constexpr, WIDTH: tl.constexpr):
    """Keep the row at `slot` of a head's x, which begins at `first`, in Lost, and put the row at `new` there."""
    channel = tl.arange(0, WIDTH)
    real = channel < D
    coming = tl.load(X + first + new * stride + channel * channel_stride, mask=real, other=0.0)
    going = tl.load(X + first + slot * stride + channel * channel_stride, mask=real, other=0.0)
    tl.store(Lost + flat * D + channel, going, mask=real)
    tl.store(X + first + slot * stride + channel * channel_stride, coming, mask=real)


@triton.jit  # not tuned: that would run it several times, and it changes the cache
def _finish(
    K, V, Mass, Positions, Padding, Sinks, Scores, Sums, Top, Total, Z,
    Slot, LostPosition, LostMass, LostKey, LostValue, Hs, n, parts, keep_oldest, keep_newest,
    k_batch, k_head, k_slot, k_channel, v_batch, v_head, v_slot, v_channel,
    p_batch, p_head, p_slot, m_batch, m_head, m_slot,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, DV: tl.constexpr,
    WIDTH_V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    flat = batch * Hs + head
    rows, column, lane = tl.arange(0, ROWS), tl.arange(0, WIDTH_V), tl.arange(0, BLOCK)
    row, mine = flat * GROUP + rows, rows < GROUP

    # z, from the sums of all parts
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    z = tl.zeros([ROWS, WIDTH_V], tl.float32)
    if Sinks is not None:
        top = tl.load(Sinks + head * GROUP + rows, mask=mine, other=0.0).to(tl.float32) * LOG2E
        total = tl.full([ROWS], 1.0, tl.float32)
    shown = mine[:, None] & (column < DV)[None, :]
    for part in range(parts):
        place = row * parts + part
        its_top = tl.load(Top + place, mask=mine, other=float("-inf"))
        top, level, fade = raised(top, its_top)
        weight = tl.exp2(its_top - level)
        total = total * fade + weight * tl.load(Total + place, mask=mine, other=0.0)
        its_sum = tl.load(Sums + place[:, None] * DV + column[None, :], mask=shown, other=0.0)
        z = z * fade[:, None] + weight[:, None] * its_sum
    top = tl.where(top == float("-inf"), 0.0, top)
    inverse = 1.0 / tl.where(mine, total, 1.0)
    tl.store(Z + row[:, None] * DV + column[None, :], z * inverse[:, None], mask=shown)

    # the token that goes: in every lane the least attended, of equals the latest, then the same over all lanes
    mass, positions = Mass + batch * m_batch + head * m_head, Positions + batch * p_batch + head * p_head
    last = tl.cast(n - 1, tl.int64)
    new_position = tl.load(positions + last * p_slot)
    padding = 0
    if Padding is not None:
        padding = tl.load(Padding + batch)
    worth = tl.full([BLOCK], float("inf"), tl.float32)
    latest = tl.full([BLOCK], -1, tl.int32)
    lost_mass = tl.zeros([BLOCK], tl.float32)
    new_mass = tl.zeros([BLOCK], tl.float32)
    its_slot = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        slots = start + lane
        received = _received(Scores, row, mine, slots, n, top, inverse)
        had = received + tl.load(mass + slots.to(tl.int64) * m_slot, mask=slots < n - 1, other=0.0)
        at = tl.load(positions + slots.to(tl.int64) * p_slot, mask=slots < n, other=-1).to(tl.int32)
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
    tl.store(Slot + flat, slot)
    tl.store(LostPosition + flat, position)
    tl.store(LostMass + flat, tl.sum(tl.where(lane == winner, lost_mass, 0.0), 0))

    # the new token in its place
    fresh = tl.sum(new_mass, 0)
    for start in range(0, n, BLOCK):
        slots = start + lane
        received = _received(Scores, row, mine, slots, n, top, inverse)
        had = received + tl.load(mass + slots.to(tl.int64) * m_slot, mask=slots < n - 1, other=0.0)
        tl.store(mass + slots.to(tl.int64) * m_slot, tl.where(slots == slot, fresh, had), mask=slots < n)
    tl.store(positions + slot * p_slot, new_position)
    _replace(K, LostKey, flat, batch * k_batch + head * k_head, slot, last, k_slot, k_channel, D, WIDTH)
    _replace(V, LostValue, flat, batch * v_batch + head * v_head, slot, last, v_slot, v_channel, DV, WIDTH_V)


def decode_step(call: StepCall) -> tuple[Tensor, Evicted]:
    """(z, evicted) as documented in the package."""
    q, keys, values, mass, positions, keep_oldest, keep_newest, padding, scale, softcap, sinks = call
    batch, heads, _, size = q.shape
    stored, n = keys.shape[1:3]
    group, size_v = heads // stored, values.shape[-1]
    parts, length = split(n, batch * stored, LEAST_PART, PROGRAMS)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return q.new_empty(shape, dtype=dtype)

    scores, sums = empty(batch, heads, n), empty(batch, heads, parts, size_v)
    top, total, z = empty(batch, heads, parts), empty(batch, heads, parts), empty(batch, heads, 1, size_v)
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
    widths = {"GROUP": group, "D": size, "WIDTH": power_of_two(size), "DV": size_v, "WIDTH_V": power_of_two(size_v)}
    _attend[parts, stored, batch](
        q.to(keys.dtype).contiguous(), keys, values, positions, padding, scores, sums, top, total,
        stored, n, length, parts, scale, softcap, *keys.stride(), *values.stride(), *positions.stride(),
        ROWS=power_of_two(group), IN_FP32=exact(keys) or exact(values), **widths,
    )  # fmt: skip
    rows = power_of_two(group, least=1)
    _finish[stored, batch](
        keys, values, mass, positions, padding, sinks if sinks is None else sinks.contiguous(),
        scores, sums, top, total, z, *lost, stored, n, parts, keep_oldest, keep_newest,
        *keys.stride(), *values.stride(), *positions.stride(), *mass.stride(),
        ROWS=rows, BLOCK=min(power_of_two(n), max(16, BLOCK_CELLS // rows)), **widths,
    )  # fmt: skip
    return z, lost
