"""group_reweighted_attention in blocks of query rows that hold all the keys their rows see."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import HIDDEN, LOG2E, HeadPattern, HeadScores, Task, real_rows, row_shift, tasks
from ..checks import accumulator
from ..explicit import capped, clear_padding
from ..facts import Facts
from ..parallel import for_each
from .edit import Edit
from .forms import reweight

FEW_ROWS = 8
FEW_CELLS = 1 << 22
"""Scores of few rows, over all texts, heads and groups, that are made at once: 16 MB in fp32."""


def group_reweighted_attention(
    q: Tensor, k: Tensor, v: Tensor, edit: Edit, facts: Facts
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, lse, masses) as documented in the package."""
    return reweight(group_sums, reweighted_sum, q, k, v, edit, facts)


def group_sums(
    q: Tensor, k: Tensor, v: Tensor | None, edit: Edit, facts: Facts
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Each group's part of A @ v [B, H, N, G, R] (None without v) and of A's row sum [B, H, N, G], and lse."""
    batch, heads, queries, keys = facts.shape
    dtype = accumulator(q)
    members = edit.members(dtype)
    if v is not None and queries <= FEW_ROWS and batch * heads * queries * keys * edit.count <= FEW_CELLS:
        return sums_of_few_rows(q, k, v, members, facts)
    highest = q.new_zeros(batch, heads, queries, dtype=dtype)
    sums = q.new_zeros(batch, heads, queries, edit.count, dtype=dtype)
    parts = None if v is None else q.new_zeros(batch, heads, edit.count, queries, v.shape[-1], dtype=dtype)
    positions = None
    if v is not None and queries > FEW_ROWS:
        positions = [[[row.nonzero()[:, 0] for row in member] for member in text] for text in members]

    def fill_rows(task: Task) -> None:
        b, h, blocks = task
        group_head = h % members.shape[1]
        head = HeadScores(q, k, task, facts)
        member = members[b, group_head]
        by_group = None
        if v is not None:
            values = real_rows(v, b, h // (heads // v.shape[1]), facts.key_mask, dtype)
            by_group = GroupValues(values, member, None if positions is None else positions[b][group_head])
        for rows, seen in blocks:
            scores = head.hide(head.scores(rows, seen), rows, seen, HIDDEN)
            top = scores.amax(-1).clamp_(min=HIDDEN / 2)  # a row of hidden keys then sums to 0
            exponentials = scores.sub_(top[:, None]).exp2_()
            highest[b, h, rows] = top
            sums[b, h, rows] = exponentials @ member[:, seen].T
            if parts is not None and by_group is not None:
                by_group.multiply(exponentials, seen, parts[b, h, :, rows])

    for_each(tasks(facts), fill_rows)
    if facts.query_mask is not None:
        sums.masked_fill_(~facts.query_mask[:, None, :, None], 0.0)
    total = sums.sum(-1, keepdim=True)
    lse = (highest + total[..., 0].log2()) / LOG2E
    weight = torch.where(total > 0, 1 / total, 0.0)
    if parts is not None:
        parts = parts.mul_(weight[:, :, None]).transpose(2, 3)
    return parts, sums * weight, lse


def sums_of_few_rows(q: Tensor, k: Tensor, v: Tensor, members: Tensor, facts: Facts) -> tuple[Tensor, Tensor, Tensor]:
    """The same for all heads at once, as a step of decoding wants it: a loop over heads would take longer than they."""
    batch, heads, queries, keys = facts.shape
    q, k, v = clear_padding(q, facts.query_mask), clear_padding(k, facts.key_mask), clear_padding(v, facts.key_mask)
    by_head = (facts.scale * q.to(members.dtype)).reshape(batch, k.shape[1], heads // k.shape[1] * queries, q.shape[-1])
    scores = capped((by_head @ k.to(members.dtype).mT).view(batch, heads, queries, keys), facts.softcap)
    if facts.bias is not None:
        scores = scores + facts.bias.to(scores.dtype)
    scores = scores.masked_fill(~facts.visible(), -torch.inf)
    lse = torch.logsumexp(scores, -1)
    pattern = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    of_group = pattern[:, :, :, None] * members[:, :, None]
    together = of_group.reshape(batch, v.shape[1], heads // v.shape[1] * queries * of_group.shape[3], keys)
    parts = (together @ v.to(members.dtype)).view(*of_group.shape[:4], v.shape[-1])
    return parts, of_group.sum(-1), lse


class GroupValues:
    """The values [S, R] of a head, to be multiplied by blocks of its exponentials a group at a time.

    member [G, S] is 1 for the keys of a group. positions of each group's keys, in order: then columns are picked, and
    all products together are as small as A @ v. Without them columns are zeroed, which is quicker for few rows.
    """

    def __init__(self, values: Tensor, member: Tensor, positions: list[Tensor] | None) -> None:
        self.values, self.member, self.positions = values, member, positions
        if positions is not None:
            self.picked = [values.index_select(0, where) for where in positions]

    def multiply(self, exponentials: Tensor, seen: slice, out: Tensor) -> None:
        """Put each group's part of exponentials [rows, keys] @ values into out [G, rows, R]."""
        if self.positions is None:
            zeroed = exponentials * self.member[:, None, seen]
            out.copy_((zeroed.flatten(0, 1) @ self.values[seen]).view_as(out))
            return
        ends = torch.tensor([seen.start, seen.stop])
        for group, where in enumerate(self.positions):
            inside = slice(*torch.searchsorted(where, ends.to(where.device)).tolist())
            chosen = exponentials.index_select(1, where[inside] - seen.start)
            torch.mm(chosen, self.picked[group][inside], out=out[group])


def reweighted_sum(q: Tensor, k: Tensor, v: Tensor, edit: Edit, scaling: Tensor, lse: Tensor, facts: Facts) -> Tensor:
    """A @ v with A's cells scaled by row and group [B, H, N, G]: [B, H, N, R]."""
    batch, heads, queries, _ = facts.shape
    dtype = accumulator(q)
    members = edit.members(dtype)
    shift = row_shift(lse, facts, dtype)
    z = q.new_zeros(batch, heads, queries, v.shape[-1], dtype=dtype)

    def fill_rows(task: Task) -> None:
        b, h, blocks = task
        pattern = HeadPattern(q, k, shift, task, facts)
        values = real_rows(v, b, h // (heads // v.shape[1]), facts.key_mask, dtype)
        member = members[b, h % members.shape[1]]
        scales = torch.empty_like(pattern.buffer)
        for rows, seen in blocks:
            block = pattern.block(rows, seen)
            scale = torch.mm(scaling[b, h, rows], member[:, seen], out=scales[: block.numel()].view_as(block))
            torch.mm(block.mul_(scale), values[seen], out=z[b, h, rows])

    for_each(tasks(facts), fill_rows)
    return z
