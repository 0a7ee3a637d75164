"""What the blocked attention operations share: walking a head in blocks of query rows.

A block is some rows next to all the keys that they see. Its scores stay near the core while they are masked,
exponentiated and multiplied, and memory is one block a thread, whatever N and S are. Scores are kept in units of
log 2, because torch's vectorised exp2 takes a third of the time of its exp.
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
BLOCK_CELLS = 512 * 1024  # 2 MB of fp32 scores; half or twice as many cost 5 % more
MOST_ROWS = 128  # more rows waste more work on hidden keys beside the diagonal
FEWEST_ROWS = 32  # fewer rows make the matrix products slow, so long contexts get larger blocks instead
HIDDEN = -1e30  # a score whose exponential is 0; finite, so that 0 * score is 0 and not NaN
EMPTY_SHIFT = 1e30  # a log denominator under which every score's exponential is 0
HALF_LIFT = 15.0
"""Log 2 of what multiplies A where it is rounded to fp16, which has nothing between 0 and 6e-8; taken out of sums."""


def lift(values: Tensor | None) -> float | None:
    """HALF_LIFT where A is rounded to fp16 before it meets these values; None where it is not."""
    return HALF_LIFT if values is not None and values.dtype == torch.float16 else None


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
        fitting = BLOCK_CELLS // max(1, high - low)
        stop = min(queries, start + max(FEWEST_ROWS, min(MOST_ROWS, fitting)))
        low, high = facts.key_range(start, stop)
        if low < high:
            yield slice(start, stop), slice(low, high)
        start = stop


class HeadScores:
    """The scores of a task's head, one block at a time, in a buffer that the next block overwrites.

    Holds q [N, D] and k [S, D] of the head in the accumulation dtype, padding cleared and the scale put into q.
    """

    def __init__(self, q: Tensor, k: Tensor, task: Task, facts: Facts) -> None:
        self.task, self.facts = task, facts
        dtype = accumulator(q)
        kv_head = task.head // (q.shape[1] // k.shape[1])
        unit = facts.scale * LOG2E if facts.softcap is None else facts.scale / facts.softcap
        self.query = real_rows(q, task.batch, task.head, facts.query_mask, dtype) * unit
        self.key_transposed = real_rows(k, task.batch, kv_head, facts.key_mask, dtype).T
        self.buffer = q.new_empty(max(map(cells, task.blocks)), dtype=dtype)

    def scores(self, rows: slice, keys: slice) -> Tensor:
        """Scores [rows, keys] in units of log 2, hidden keys included."""
        return self.add_bias(self.unbiased(rows, keys), rows, keys)

    def unbiased(self, rows: slice, keys: slice) -> Tensor:
        """Scores [rows, keys] as they are before the bias."""
        scores = self.buffer[: cells((rows, keys))].view(-1, keys.stop - keys.start)
        torch.mm(self.query[rows], self.key_transposed[:, keys], out=scores)
        if self.facts.softcap is not None:
            scores.tanh_().mul_(self.facts.softcap * LOG2E)
        return scores

    def add_bias(self, block: Tensor, rows: slice, keys: slice) -> Tensor:
        """Add the bias to scores [rows, keys], in place."""
        bias = self.facts.bias
        if bias is not None:
            of_head = bias[self.task.batch % bias.shape[0], self.task.head % bias.shape[1]]
            part = of_head[rows if len(of_head) > 1 else slice(0, 1), keys].to(block.dtype)
            block.add_((part * LOG2E).clamp_(min=HIDDEN))
        return block

    def hide(self, block: Tensor, rows: slice, keys: slice, value: float) -> Tensor:
        """Set the cells of block [rows, keys] whose key is hidden from the query to value, in place."""
        for low, high, hidden in self.facts.hidden(self.task.batch, self.task.head, rows.start, rows.stop):
            block[:, low - keys.start : high - keys.start].masked_fill_(hidden, value)
        return block


class HeadPattern(HeadScores):
    """Blocks of A itself, for rows whose log denominators [B, H, N] are known (`row_shift`)."""

    def __init__(self, q: Tensor, k: Tensor, shift: Tensor, task: Task, facts: Facts) -> None:
        super().__init__(q, k, task, facts)
        self.shift = shift[task.batch, task.head, :, None]

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


def cells(block: tuple[slice, slice]) -> int:
    """How many scores a block has."""
    rows, keys = block
    return int((rows.stop - rows.start) * (keys.stop - keys.start))
