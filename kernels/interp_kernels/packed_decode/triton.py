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

from ..arguments import Strided, Unfinished, kind, strided
from ..launch import config, power_of_two, split, tuned
from ..score_block import LOG2E, attended, capped, head_start, load_rows, raised
from .call import Decoded, KeySegment, PackedCall, in_blocks

PROGRAMS = 512  # wanted: four for each multiprocessor of a large GPU
LEAST_TOKENS = 128  # that a program reads; every BLOCK_KEYS divides it
ROW_BYTES = 1 << 14  # of queries that a program holds; more rows are left to other programs
MOST_SCORES = 1 << 26  # 256 MB of scores at a time, where mass is asked for


class _Stored(NamedTuple):
    """A segment as kernels see it: what is not there is None. Rows are tokens."""

    k: Strided
    v: Strided  # Triton's own tuples have a field called `values`
    channels: Tensor | None
    value_channels: Tensor | None
    bias: Strided | None
    offset: Tensor | None

    @property
    def dtype(self) -> str:
        return kind(self)


class _Place(NamedTuple):
    """Where a segment's tokens stand among all that are attended to."""

    tokens: int
    newest: int
    """How many of its last tokens are the queries' own."""
    first_part: int
    """Number of its first part among the parts of all segments."""
    first_column: int
    """Column of its first token in the scores."""


class _Asked(NamedTuple):
    """What all programs want to know of the call. Rows are every query of every head of a group."""

    heads: int
    """Stored ones."""
    group: int
    queries: int
    d_value: int
    scale: float
    softcap: float | None


@triton.jit
def _channels_of(X, Channels, pair):
    """(the channel that each column of X holds, whether there is such a column); without Channels all, in order."""
    column = tl.arange(0, X.width)
    channel = column
    if Channels is not None:
        channel = tl.load(Channels + pair * X.columns + column, mask=column < X.columns, other=0).to(tl.int32)
    return channel, column < X.columns


@triton.jit
def _attend_part(
    Q, S, C, Out, place, batch, stored, block, part, part_tokens, parts, columns,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Attend to one part of segment S."""
    batch, stored = tl.cast(batch, tl.int64), tl.cast(stored, tl.int64)
    pair = batch * C.heads + stored
    rows = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    inside = rows < C.group * C.queries
    query = rows % C.queries
    own = place.tokens - place.newest + query  # the last token that a row sees

    q_at = Q.x + batch * Q.batch + (stored * C.group + rows // C.queries) * Q.head + query.to(tl.int64) * Q.row
    channel, kept = _channels_of(S.k, S.channels, pair)
    q = tl.load(q_at[:, None] + channel[None, :] * Q.column, mask=inside[:, None] & kept[None, :], other=0.0)
    q = q.to(tl.float32 if S.k.widen else S.k.x.dtype.element_ty)
    shift = tl.zeros([BLOCK_QUERIES], tl.float32)  # of all scores of a row: what the keys have in common
    if S.offset is not None:
        every = tl.arange(0, Q.width)
        there = every < Q.columns
        whole = tl.load(q_at[:, None] + every[None, :] * Q.column, mask=inside[:, None] & there[None, :], other=0.0)
        offset = tl.load(S.offset + pair * Q.columns + every, mask=there, other=0.0)
        shift = tl.sum(whole.to(tl.float32) * offset.to(tl.float32)[None, :], 1)

    k_start, v_start = head_start(S.k, batch, stored), head_start(S.v, batch, stored)
    peak = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    read = tl.zeros([BLOCK_QUERIES, S.v.width], tl.float32)
    last = tl.minimum(place.tokens, (part + 1) * part_tokens)
    for start in range(part * part_tokens, last, BLOCK_KEYS):
        tokens = start + tl.arange(0, BLOCK_KEYS)
        here = tokens < last
        k, v = load_rows(S.k, k_start, tokens, here), load_rows(S.v, v_start, tokens, here)
        products = tl.dot(q, tl.trans(k), input_precision="ieee") + shift[:, None]
        scores = products * C.scale
        if C.softcap is not None:
            scores = capped(scores, C.softcap)
        if S.bias is not None:
            bias_at = head_start(S.bias, batch, stored) + tokens.to(tl.int64) * S.bias.row
            scores += tl.load(bias_at, mask=here, other=0.0).to(tl.float32)[None, :]
        seen = here[None, :] & (tokens[None, :] <= own[:, None])
        scores = tl.where(seen, scores * LOG2E, float("-inf"))
        if Out.scores is not None:
            cells = (pair * C.group * C.queries + rows[:, None]) * columns + place.first_column + tokens[None, :]
            tl.store(Out.scores + cells, scores, mask=inside[:, None] & here[None, :])
        peak, total, read = attended(peak, total, read, scores, v, None)

    out = (pair * parts + place.first_part + part) * C.group * C.queries + rows
    tl.store(Out.peak + out, peak, mask=inside)
    tl.store(Out.total + out, total, mask=inside)
    value_channel, kept_values = _channels_of(S.v, S.value_channels, pair)
    read_at = Out.read + out[:, None] * C.d_value + value_channel[None, :]
    tl.store(read_at, read, mask=inside[:, None] & kept_values[None, :])


@tuned(
    [
        config(keys=32, stages=3),
        config(keys=64, stages=2),
        config(keys=64, stages=3),
        config(keys=64, warps=8, stages=3),
        config(keys=128, stages=2),
        config(keys=128, warps=8, stages=3),
        config(keys=16, stages=2),  # what fits where rows are wide
    ],
    key=["part_tokens", "PAIR", "BLOCK_QUERIES"],
)
@triton.jit(do_not_specialize=["a_place", "b_place", "a_parts", "part_tokens", "parts", "columns"])
def _attend_two(
    Q, A, B, C, Out, a_place, b_place, a_parts, part_tokens, parts, columns, blocks,
    PAIR: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Segment A, and B of a PAIR; programs are (part and block of rows, stored head, text)."""
    part, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    stored, batch = tl.program_id(1), tl.program_id(2)
    if PAIR and part >= a_parts:
        _attend_part(
            Q, B, C, Out, b_place, batch, stored, block, part - a_parts, part_tokens, parts, columns,
            BLOCK_QUERIES, BLOCK_KEYS,
        )  # fmt: skip
    else:
        _attend_part(
            Q, A, C, Out, a_place, batch, stored, block, part, part_tokens, parts, columns, BLOCK_QUERIES, BLOCK_KEYS
        )


@triton.jit(do_not_specialize=["parts"])
def _put_together(Z, Lse, Out, Sinks, C, parts, BLOCK_COLUMNS: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """z of one row, and the log of its denominator, learned sink included."""
    row, stored, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = tl.cast(batch, tl.int64) * C.heads + stored
    channel = tl.arange(0, BLOCK_COLUMNS)
    peak = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    z = tl.zeros([BLOCK_COLUMNS], tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)
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
def _sum_of_weights(Scores, Lse, Mass, rows, columns, heads, BLOCK_KEYS: tl.constexpr):
    """What all rows give to each of a block of tokens."""
    pair = tl.cast(tl.program_id(2), tl.int64) * heads + tl.program_id(1)
    token = tl.program_id(0) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    mass = tl.zeros([BLOCK_KEYS], tl.float32)
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
    batch, heads, queries, _ = q.shape
    stored = call.segments[0].keys.shape[1]
    group = heads // stored
    asking = strided(q)
    row_block = min(power_of_two(group * queries), max(16, ROW_BYTES // (asking.width.value * q.element_size())))
    blocks = triton.cdiv(group * queries, row_block)
    segments = [s for s in call.segments if s.keys.shape[2]]
    tokens = [s.keys.shape[2] for s in segments]
    _, part_tokens = split(sum(tokens), batch * stored * blocks, LEAST_TOKENS, PROGRAMS, doubling=True)
    parts = [triton.cdiv(n, part_tokens) for n in tokens]
    newest = [0] * (len(segments) - 1) + [queries]
    places = [_Place(n, newest[i], sum(parts[:i]), sum(tokens[:i])) for i, n in enumerate(tokens)]
    asked = _Asked(stored, group, queries, call.d_value, call.scale, call.softcap)
    out = _unfinished(call, group * queries, sum(parts), sum(tokens))
    for a in range(0, len(segments), 2):
        b = min(a + 1, len(segments) - 1)  # the last of an odd number stands alone
        programs = blocks * sum(parts[a : b + 1])
        _attend_two[programs, stored, batch](
            asking, _as_stored(segments[a]), _as_stored(segments[b]), asked, out, places[a], places[b],
            parts[a], part_tokens, sum(parts), sum(tokens), blocks, PAIR=a < b, BLOCK_QUERIES=row_block,
        )  # fmt: skip
    return _finished(call, asked, out, sum(parts), [s.keys.shape[2] for s in call.segments])


def _finished(call: PackedCall, asked: _Asked, out: Unfinished, parts: int, tokens: list[int]) -> Decoded:
    batch, heads, queries, _ = call.q.shape
    stored, rows = asked.heads, asked.group * queries
    z = out.read.new_empty(batch, heads, queries, call.d_value)
    lse = out.read.new_empty(batch, stored, rows) if call.mass else None
    sinks = None if call.sinks is None else call.sinks.contiguous()
    width = power_of_two(call.d_value)
    _put_together[rows, stored, batch](z, lse, out, sinks, asked, parts, BLOCK_COLUMNS=width, BLOCK_PARTS=16)
    if lse is None:
        return Decoded(z, None)
    total, block = sum(tokens), 256
    mass = out.read.new_empty(batch, stored, total)
    _sum_of_weights[triton.cdiv(total, block), stored, batch](
        out.scores, lse, mass, rows, total, stored, BLOCK_KEYS=block
    )
    return Decoded(z, torch.split(mass, tokens, -1))


def _unfinished(call: PackedCall, rows: int, parts: int, tokens: int) -> Unfinished:
    batch, stored = call.segments[0].keys.shape[:2]
    peak, total = call.q.new_empty(2, batch, stored, parts, rows, dtype=torch.float32)
    # a program writes the channels that its values have: where they may lack some, the rest is zero from the start
    new = peak.new_empty if all(s.value_channels is None for s in call.segments) else peak.new_zeros
    read = new(batch, stored, parts, rows, call.d_value)
    scores = peak.new_empty(batch, stored, rows, tokens) if call.mass else None
    return Unfinished(read, peak, total, scores)


def _as_stored(s: KeySegment) -> _Stored:
    batch, stored = s.keys.shape[:2]
    bias = None if s.bias is None else s.bias.expand(batch, stored, -1)
    channels, value_channels, offset = (
        None if x is None else x.contiguous() for x in (s.channels, s.value_channels, s.offset)
    )
    return _Stored(
        strided(s.keys), strided(s.values), channels, value_channels,
        None if bias is None else strided(bias[..., None]), offset,
    )  # fmt: skip
