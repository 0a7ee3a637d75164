"""attention_apply in blocks of query rows: each block holds all the keys its rows see, so its softmax is exact."""

from __future__ import annotations

from collections.abc import Collection
from threading import Lock

import torch
from torch import Tensor

from ..blocks import EMPTY_SHIFT, HIDDEN, LOG2E, HeadScores, Task, real_rows, tasks
from ..checks import accumulator
from ..facts import Facts
from ..parallel import for_each


def attention_apply(
    q: Tensor, k: Tensor, v: Tensor | None, statistics: Collection[str], facts: Facts
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(z, lse, entropy, square, column mass) as documented in the package; what was not asked for is None."""
    batch, heads, queries, keys = facts.shape
    dtype = accumulator(q)
    # With t = score - highest score of the row, in units of log 2, each row's sums of 2^t, 2^t t, 4^t and 2^t v.
    highest = q.new_zeros(batch, heads, queries, dtype=dtype)
    total = torch.zeros_like(highest)
    surprise = torch.zeros_like(highest) if "entropy" in statistics else None
    squares = torch.zeros_like(highest) if "square" in statistics else None
    received = q.new_zeros(batch, heads, 1, keys, dtype=dtype) if "column_mass" in statistics else None
    z = q.new_zeros(batch, heads, queries, 0 if v is None else v.shape[-1], dtype=dtype)

    def fill_rows(task: Task) -> None:
        b, h, blocks = task
        head = HeadScores(q, k, task, facts)
        values = None if v is None else real_rows(v, b, h // (heads // v.shape[1]), facts.key_mask, dtype)
        share = None if received is None else torch.zeros_like(received[b, h])
        for rows, seen in blocks:
            scores = head.hide(head.scores(rows, seen), rows, seen, HIDDEN)
            top = scores.amax(-1).clamp_(min=HIDDEN / 2)  # a row of hidden keys then sums to 0
            scores.sub_(top[:, None])
            exponentials = scores.exp2_() if surprise is None else scores.exp2()
            highest[b, h, rows] = top
            total[b, h, rows] = exponentials.sum(-1)
            if values is not None:
                torch.mm(exponentials, values[seen], out=z[b, h, rows])
            if surprise is not None:
                surprise[b, h, rows] = scores.mul_(exponentials).sum(-1)
            if squares is not None:
                squares[b, h, rows] = torch.linalg.vector_norm(exponentials, dim=-1).square_()
            if share is not None:
                weight = row_weight(task, rows, top, total[b, h, rows], facts)
                share[:, seen].addmm_(weight[None], exponentials)
        if received is not None and share is not None:
            with adding:  # a head has two shares, so the sum does not depend on which comes first
                received[b, h] += share

    adding = Lock()
    for_each(tasks(facts), fill_rows)
    if facts.query_mask is not None:
        total.masked_fill_(~facts.query_mask[:, None], 0.0)
    log_total = total.log2()
    lse = (highest + log_total) / LOG2E
    if facts.sinks is not None:
        log_total = torch.logaddexp2(log_total, facts.sinks.to(dtype)[:, None] * LOG2E - highest)
    log_total.masked_fill_(total == 0, EMPTY_SHIFT)
    weight = torch.exp2(-log_total)
    return (
        None if v is None else z.mul_(weight[..., None]),
        lse,
        None if surprise is None else (total * log_total - surprise) * weight / LOG2E,
        None if squares is None else squares * weight.square(),
        None if received is None else received[:, :, 0],
    )


def row_weight(task: Task, rows: slice, top: Tensor, total: Tensor, facts: Facts) -> Tensor:
    """What makes a block's exponentials rows of A: 1 over the row's denominator, 0 for padding and empty rows."""
    denominator = total
    if facts.sinks is not None:
        denominator = total + torch.exp2(facts.sinks[task.head].to(total.dtype) * LOG2E - top)
    kept = total > 0 if facts.query_mask is None else (total > 0) & facts.query_mask[task.batch, rows]
    return torch.where(kept, 1 / denominator, 0.0)
