"""packed_decode split over tokens: programs attend to a part of a segment each, and a small kernel puts parts together.

One launch covers two segments, which is all there are where one packed segment is followed by a dense one. A program
reads its keys and values once for all rows, which are the queries of a group's heads, wherever they lie in memory.
What it leaves behind is an unfinished softmax: the largest score, the sum of exponentials and the values they weigh.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import config, exact, power_of_two, tuned
from ..score_block import LOG2E, capped, raised
from .call import Decoded, KeySegment, PackedCall, in_blocks

PROGRAMS = 512  # wanted: four for each multiprocessor of a large GPU
LEAST_TOKENS = 128  # that a program reads; every BLOCK divides it
ROW_BYTES = 1 << 14  # of queries that a program holds; more rows are left to other programs
MOST_SCORES = 1 << 26  # 256 MB of scores at a time, where mass is asked for


class _Stored(NamedTuple):
    """A segment as kernels see it: what is not there is None, `kept` counts channels, strides count elements."""

    k: Tensor
    v: Tensor  # Triton's own tuples have a field called `values`
    channels: Tensor | None
    value_channels: Tensor | None
    bias: Tensor | None
    offset: Tensor | None
    kept: int
    kept_values: int
    key_batch: int
    key_head: int
    key_token: int
    key_channel: int
    value_batch: int
    value_head: int
    value_token: int
    value_channel: int
    bias_batch: int
    bias_head: int
    bias_token: int


class _Asked(NamedTuple):
    """What all programs want to know of the call. Rows are every query of every head of a group."""

    heads: int
    """Stored ones."""
    group: int
    queries: int
    d_value: int
    scale: float
    softcap: float | None
    q_batch: int
    q_head: int
    q_query: int
    q_channel: int


class _Unfinished(NamedTuple):
    """What programs leave behind, [B, Hs, parts, rows, ...] each, and the raw scores [B, Hs, rows, tokens]."""

    read: Tensor
    peak: Tensor
    total: Tensor
    scores: Tensor | None


@triton.jit
def _attend_part(
    Q, S, C, Out, batch, stored, block, part, tokens, newest, part_tokens, out_part, parts, column, columns,
    D: tl.constexpr, D_WIDTH: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    IN_FP32: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Attend to one part of segment S, of whose `tokens` the last `newest` are the queries' own.

    It becomes number `out_part` of all parts; the segment's scores begin at `column`.
    """
    batch, stored = tl.cast(batch, tl.int64), tl.cast(stored, tl.int64)
    pair = batch * C.heads + stored
    rows = block * ROWS + tl.arange(0, ROWS)
    real = (rows < C.group * C.queries)[:, None]
    query = rows % C.queries
    own = tokens - newest + query  # the last token that a row sees
    inner, place, value_place = tl.arange(0, BLOCK), tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH)
    kept, kept_values = (place < S.kept)[None, :], (value_place < S.kept_values)[None, :]

    q_at = Q + batch * C.q_batch + (stored * C.group + rows // C.queries) * C.q_head + query.to(tl.int64) * C.q_query
    channel = place
    if S.channels is not None:
        channel = tl.load(S.channels + pair * S.kept + place, mask=place < S.kept, other=0).to(tl.int32)
    q = tl.load(q_at[:, None] + channel[None, :] * C.q_channel, mask=real & kept, other=0.0)
    q = q.to(tl.float32 if IN_FP32 else S.k.dtype.element_ty)
    shift = tl.zeros([ROWS], tl.float32)  # of all scores of a row: what the keys have in common
    if S.offset is not None:
        every = tl.arange(0, D_WIDTH)
        whole = tl.load(q_at[:, None] + every[None, :] * C.q_channel, mask=real & (every < D)[None, :], other=0.0)
        offset = tl.load(S.offset + pair * D + every, mask=every < D, other=0.0)
        shift = tl.sum(whole.to(tl.float32) * offset.to(tl.float32)[None, :], 1)

    key_base = S.k + batch * S.key_batch + stored * S.key_head
    key_at = inner[:, None] * S.key_token + place[None, :] * S.key_channel
    value_base = S.v + batch * S.value_batch + stored * S.value_head
    value_at = inner[:, None] * S.value_token + value_place[None, :] * S.value_channel
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    read = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    last = tl.minimum(tokens, (part + 1) * part_tokens)
    for start in range(part * part_tokens, last, BLOCK):
        first = tl.cast(start, tl.int64)
        here = inner < last - start
        k = tl.load(key_base + first * S.key_token + key_at, mask=here[:, None] & kept, other=0.0)
        v = tl.load(value_base + first * S.value_token + value_at, mask=here[:, None] & kept_values, other=0.0)
        if IN_FP32:
            k, v = k.to(tl.float32), v.to(tl.float32)
        products = tl.dot(q, tl.trans(k), input_precision="ieee") + shift[:, None]
        scores = capped(products * C.scale, C.softcap)
        if S.bias is not None:
            bias_at = S.bias + batch * S.bias_batch + stored * S.bias_head + first * S.bias_token + inner * S.bias_token
            scores += tl.load(bias_at, mask=here, other=0.0).to(tl.float32)[None, :]
        seen = here[None, :] & (start + inner[None, :] <= own[:, None])
        scores = tl.where(seen, scores * LOG2E, float("-inf"))
        if Out.scores is not None:
            at = (pair * C.group * C.queries + rows[:, None]) * columns + column + start + inner[None, :]
            tl.store(Out.scores + at, scores, mask=real & here[None, :])
        peak, level, fade = raised(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - level[:, None])
        total = total * fade + tl.sum(weights, 1)
        read = read * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")

    out = (pair * parts + out_part) * C.group * C.queries + rows
    tl.store(Out.peak + out, peak, mask=rows < C.group * C.queries)
    tl.store(Out.total + out, total, mask=rows < C.group * C.queries)
    if S.value_channels is not None:
        places = S.value_channels + pair * S.kept_values + value_place
        value_place = tl.load(places, mask=value_place < S.kept_values, other=0).to(tl.int32)
    tl.store(Out.read + out[:, None] * C.d_value + value_place[None, :], read, mask=real & kept_values)


@tuned(
    [
        config(BLOCK=32, stages=3),
        config(BLOCK=64, stages=2),
        config(BLOCK=64, stages=3),
        config(BLOCK=64, warps=8, stages=3),
        config(BLOCK=128, stages=2),
        config(BLOCK=128, warps=8, stages=3),
        config(BLOCK=16, stages=2),  # what fits where rows are wide
    ],
    key=["part_tokens", "PAIR", "ROWS", "A_WIDTH", "B_WIDTH", "A_VALUE_WIDTH", "B_VALUE_WIDTH"],
)
@triton.jit(
    do_not_specialize=["a_tokens", "b_tokens", "a_parts", "part_tokens", "first_part", "parts", "column", "columns"]
)
def _attend_two(
    Q, A, B, C, Out, a_tokens, b_tokens, a_newest, b_newest, a_parts, part_tokens, first_part, parts, column, columns,
    blocks, PAIR: tl.constexpr, D: tl.constexpr, D_WIDTH: tl.constexpr, ROWS: tl.constexpr, A_WIDTH: tl.constexpr,
    B_WIDTH: tl.constexpr, A_VALUE_WIDTH: tl.constexpr, B_VALUE_WIDTH: tl.constexpr, IN_FP32: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Segment A, and B of a PAIR; programs are (part and block of rows, stored head, text)."""
    part, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    stored, batch = tl.program_id(1), tl.program_id(2)
    if PAIR and part >= a_parts:
        _attend_part(
            Q, B, C, Out, batch, stored, block, part - a_parts, b_tokens, b_newest, part_tokens, first_part + part,
            parts, column + a_tokens, columns, D, D_WIDTH, ROWS, B_WIDTH, B_VALUE_WIDTH, IN_FP32, BLOCK,
        )  # fmt: skip
    else:
        _attend_part(
            Q, A, C, Out, batch, stored, block, part, a_tokens, a_newest, part_tokens, first_part + part, parts,
            column, columns, D, D_WIDTH, ROWS, A_WIDTH, A_VALUE_WIDTH, IN_FP32, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["parts"])
def _put_together(Z, Lse, Out, Sinks, C, parts, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """z of one row, and the log of its denominator, learned sink included."""
    row, stored, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = tl.cast(batch, tl.int64) * C.heads + stored
    channel = tl.arange(0, WIDTH)
    peak = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    z = tl.zeros([WIDTH], tl.float32)
    for start in range(0, parts, CHUNK):
        part = start + tl.arange(0, CHUNK)
        there = part < parts
        at = (pair * parts + part) * C.group * C.queries + row
        peaks = tl.load(Out.peak + at, mask=there, other=float("-inf"))
        totals = tl.load(Out.total + at, mask=there, other=0.0)
        read_at = Out.read + at[:, None] * C.d_value + channel[None, :]
        read = tl.load(read_at, mask=there[:, None] & (channel < C.d_value)[None, :], other=0.0)
        peak, level, fade = raised(peak, tl.max(peaks, 0))
        weights = tl.exp2(peaks - level)
        total = total * fade + tl.sum(weights * totals, 0)
        z = z * fade + tl.sum(weights[:, None] * read, 0)
    if Sinks is not None:  # one more column, without a value
        sink = tl.load(Sinks + stored * C.group + row // C.queries).to(tl.float32) * LOG2E
        higher = tl.maximum(peak, sink)
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.exp2(sink - higher)
        z = z * fade
        peak = higher
    out = pair * C.group * C.queries + row
    tl.store(Z + out * C.d_value + channel, z / total, mask=channel < C.d_value)
    if Lse is not None:
        tl.store(Lse + out, peak + tl.log2(total))


@triton.jit(do_not_specialize=["columns"])
def _sum_of_weights(Scores, Lse, Mass, rows, columns, heads, BLOCK: tl.constexpr):
    """What all rows give to each of a block of tokens."""
    pair = tl.cast(tl.program_id(2), tl.int64) * heads + tl.program_id(1)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mass = tl.zeros([BLOCK], tl.float32)
    for row in range(rows):
        at = pair * rows + row
        scores = tl.load(Scores + at * columns + token, mask=token < columns, other=float("-inf"))
        mass += tl.exp2(scores - tl.load(Lse + at))
    tl.store(Mass + pair * columns + token, mass, mask=token < columns)


def packed_decode(call: PackedCall) -> Decoded:
    """z and mass as documented in the package."""
    return in_blocks(call, MOST_SCORES, _attend) if call.mass else _attend(call)


def _attend(call: PackedCall) -> Decoded:
    q = call.q
    batch, heads, queries, d_head = q.shape
    stored = call.segments[0].keys.shape[1]
    group = heads // stored
    width = power_of_two(d_head)
    row_block = min(power_of_two(group * queries), max(16, ROW_BYTES // (width * q.element_size())))
    blocks = triton.cdiv(group * queries, row_block)
    segments = [s for s in call.segments if s.keys.shape[2]]
    tokens = [s.keys.shape[2] for s in segments]
    part_tokens = _tokens_of_a_part(sum(tokens), batch * stored * blocks)
    parts = [triton.cdiv(n, part_tokens) for n in tokens]
    newest = [0] * (len(segments) - 1) + [queries]
    asked = _Asked(stored, group, queries, call.d_value, call.scale, call.softcap, *q.stride())
    out = _unfinished(call, group * queries, sum(parts), sum(tokens))
    for a in range(0, len(segments), 2):
        b = min(a + 1, len(segments) - 1)  # the last of an odd number stands alone
        programs = blocks * sum(parts[a : b + 1])
        _attend_two[programs, stored, batch](
            q, _as_stored(segments[a]), _as_stored(segments[b]), asked, out, tokens[a], tokens[b], newest[a], newest[b],
            parts[a], part_tokens, sum(parts[:a]), sum(parts), sum(tokens[:a]), sum(tokens), blocks, PAIR=a < b,
            D=d_head, D_WIDTH=width, ROWS=row_block, **_widths("A", segments[a]),
            **_widths("B", segments[b]), IN_FP32=exact(q),
        )  # fmt: skip
    return _finished(call, asked, out, sum(parts), [s.keys.shape[2] for s in call.segments])


def _finished(call: PackedCall, asked: _Asked, out: _Unfinished, parts: int, tokens: list[int]) -> Decoded:
    batch, heads, queries, _ = call.q.shape
    stored, rows = asked.heads, asked.group * queries
    z = out.read.new_empty(batch, heads, queries, call.d_value)
    lse = out.read.new_empty(batch, stored, rows) if call.mass else None
    sinks = None if call.sinks is None else call.sinks.contiguous()
    width = power_of_two(call.d_value)
    _put_together[rows, stored, batch](z, lse, out, sinks, asked, parts, WIDTH=width, CHUNK=16)
    if lse is None:
        return Decoded(z, None)
    total, block = sum(tokens), 256
    mass = out.read.new_empty(batch, stored, total)
    _sum_of_weights[triton.cdiv(total, block), stored, batch](out.scores, lse, mass, rows, total, stored, BLOCK=block)
    return Decoded(z, mass.split(tokens, -1))


def _tokens_of_a_part(total: int, others: int) -> int:
    """How many tokens each program reads, of `total` tokens and so many heads and blocks of rows.

    Doubling, so that few lengths are ever tuned for. Depends on shapes alone: a call repeated gives the same bits.
    """
    wanted = max(1, PROGRAMS // max(1, others))
    return LEAST_TOKENS * triton.next_power_of_2(max(1, triton.cdiv(total, wanted * LEAST_TOKENS)))


def _unfinished(call: PackedCall, rows: int, parts: int, tokens: int) -> _Unfinished:
    batch, stored = call.segments[0].keys.shape[:2]
    peak, total = call.q.new_empty(2, batch, stored, parts, rows, dtype=torch.float32)
    # a program writes the channels that its values have: where they may lack some, the rest is zero from the start
    new = peak.new_empty if all(s.value_channels is None for s in call.segments) else peak.new_zeros
    read = new(batch, stored, parts, rows, call.d_value)
    scores = peak.new_empty(batch, stored, rows, tokens) if call.mass else None
    return _Unfinished(read, peak, total, scores)


def _as_stored(s: KeySegment) -> _Stored:
    batch, stored = s.keys.shape[:2]
    bias = None if s.bias is None else s.bias.expand(batch, stored, -1)
    channels, value_channels, offset = (
        None if x is None else x.contiguous() for x in (s.channels, s.value_channels, s.offset)
    )
    return _Stored(
        s.keys, s.values, channels, value_channels, bias, offset, s.keys.shape[3], s.values.shape[3],
        *s.keys.stride(), *s.values.stride(), *((0, 0, 0) if bias is None else bias.stride()),
    )  # fmt: skip


def _widths(name: str, s: KeySegment) -> dict[str, int]:
    return {f"{name}_WIDTH": power_of_two(s.keys.shape[3]), f"{name}_VALUE_WIDTH": power_of_two(s.values.shape[3])}
