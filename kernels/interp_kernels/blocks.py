"""What the blocked attention operations share: walking a head in blocks of query rows.

A block is as many rows as fit the budget below next to all the keys they see, so its scores stay in a core's
cache while they are masked, exponentiated and multiplied; memory is one block a thread, whatever N and S are.
Scores are kept in units of log 2, because torch's vectorised exp2 takes a third of the time of its exp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import accumulator
from .explicit import log_denominator
from .facts import Facts

LOG2E = math.log2(math.e)
BLOCK_ELEMENTS = 256 * 1024  # 1 MB of fp32 scores
MOST_ROWS = 256
FEWEST_ROWS = 32
HIDDEN = -1e30  # a score whose exponential is 0; finite, so that 0 * score is 0 and not NaN
EMPTY_SHIFT = 1e30  # a log denominator under which every score's exponential is 0


class Task(NamedTuple):
    """One head of one text, and the share of its blocks that one thread works through."""

    batch: int
    head: int
    blocks: list[tuple[slice, slice]]  # query rows, and the keys that they may see


def tasks(facts: Facts) -> list[Task]:
    """Every head in two shares: every other block, so that both take about as long under a causal mask."""
    blocks = list(row_blocks(facts))
    shares = [share for share in (blocks[0::2], blocks[1::2]) if share]
    return [Task(b, h, share) for b in range(facts.shape[0]) for h in range(facts.shape[1]) for share in shares]


def row_blocks(facts: Facts) -> Iterator[tuple[slice, slice]]:
    """Yield (query rows, keys they may see) until all rows are covered; blocks that see no key are left out."""
    queries = facts.shape[2]
    start = 0
    while start < queries:
        low, high = facts.key_range(start, min(start + FEWEST_ROWS, queries))
        fitting = BLOCK_ELEMENTS // max(1, high - low)
        stop = min(queries, start + max(FEWEST_ROWS, min(MOST_ROWS, fitting)))
        low, high = facts.key_range(start, stop)
        if low < high:
            yield slice(start, stop), slice(low, high)
        start = stop


class HeadScores:
    """The scores of one head, a block of rows at a time, in one buffer that every block overwrites.

    q [N, D] and k [S, D] are held in the accumulation dtype, q multiplied by scale (and log2 e), padding cleared.
    """

    def __init__(self, q: Tensor, k: Tensor, batch: int, head: int, facts: Facts) -> None:
        self.facts, self.batch, self.head = facts, batch, head
        dtype = accumulator(q)
        kv_head = head // (q.shape[1] // k.shape[1])
        unit = facts.scale * LOG2E if facts.softcap is None else facts.scale / facts.softcap
        self.query = real_rows(q, batch, head, facts.query_mask, dtype) * unit
        self.key_transposed = real_rows(k, batch, kv_head, facts.key_mask, dtype).T
        self.buffer = self.query.new_empty(0)

    def scores(self, rows: slice, keys: slice) -> Tensor:
        """Scores [rows, keys] in units of log 2, not masked."""
        shape = rows.stop - rows.start, keys.stop - keys.start
        if self.buffer.numel() < shape[0] * shape[1]:
            self.buffer = self.query.new_empty(max(BLOCK_ELEMENTS, shape[0] * shape[1]))
        scores = self.buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(self.query[rows], self.key_transposed[:, keys], out=scores)
        if self.facts.softcap is not None:
            scores.tanh_().mul_(self.facts.softcap * LOG2E)
        return scores

    def hide(self, block: Tensor, rows: slice, keys: slice, value: float) -> Tensor:
        """Fill the cells of block [rows, keys] whose key is hidden from the query, in place."""
        for low, high, hidden in self.facts.hidden(self.batch, self.head, rows.start, rows.stop):
            block[:, low - keys.start : high - keys.start].masked_fill_(hidden, value)
        return block


class HeadPattern(HeadScores):
    """Blocks of A itself, for a head whose rows' log denominators [N] are known."""

    def __init__(self, q: Tensor, k: Tensor, shift: Tensor, batch: int, head: int, facts: Facts) -> None:
        super().__init__(q, k, batch, head, facts)
        self.shift = shift[batch, head, :, None]

    def block(self, rows: slice, keys: slice) -> Tensor:
        """A[rows, keys], valid until the next call."""
        block = self.scores(rows, keys).sub_(self.shift[rows]).exp2_()
        return self.hide(block, rows, keys, 0.0)


def row_shift(lse: Tensor, facts: Facts, dtype: torch.dtype) -> Tensor:
    """Log2 of every row's softmax denominator [B, H, N], so large for an empty row that all of A's row is 0."""
    lse = lse.to(dtype)
    empty = lse == -torch.inf
    if facts.query_mask is not None:
        empty |= ~facts.query_mask[:, None, :]
    return (log_denominator(lse, facts) * LOG2E).masked_fill(empty, EMPTY_SHIFT)


def real_rows(x: Tensor, batch: int, head: int, keep: Tensor | None, dtype: torch.dtype) -> Tensor:
    """One head of x [B, H, T, R] as [T, R] in dtype, with zeros at the positions that keep [B, T] calls padding."""
    x = x[batch, head].to(dtype)
    return x if keep is None else x.masked_fill(~keep[batch, :, None], 0.0)
