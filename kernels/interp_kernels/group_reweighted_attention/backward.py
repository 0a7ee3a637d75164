"""The gradient of group_reweighted_attention, by rebuilding A in blocks.

Whoever computes the results, these two functions hand them on unchanged and know their derivatives. With A the softmax
over real keys, ds_ij of a score is A_ij times a number that depends on the row and the key's group, and for z also
times dz_i . v_j.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..blocks import LOG2E, HeadScores, Task, real_rows, row_shift, tasks
from ..checks import accumulator
from ..facts import Facts
from ..parallel import for_each
from .edit import Edit


class SharesGradient(Function):
    """(shares [B, H, N, G], lse [B, H, N]) as functions of q and k."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, lse: Tensor, q: Tensor, k: Tensor, edit: Edit, facts: Facts) -> Any:
        ctx.save_for_backward(shares, lse, q, k)
        ctx.edit, ctx.facts = edit, facts
        return shares, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_shares: Tensor, d_lse: Tensor) -> Any:
        shares, lse, q, k = ctx.saved_tensors
        cells = d_shares - (shares * d_shares).sum(-1, keepdim=True) + d_lse[..., None]
        found = score_gradients(q, k, None, None, cells, lse, ctx.edit, ctx.facts)
        return None, None, found.q, found.k, None, None


class OutputGradient(Function):
    """z [B, H, N, R] as a function of q, k, v, the scaling of A's cells [B, H, N, G], and lse."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, q: Tensor, k: Tensor, v: Tensor, scaling: Tensor, lse: Tensor, edit: Edit, facts: Facts
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, scaling, lse)
        ctx.edit, ctx.facts = edit, facts
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_z: Tensor) -> Any:
        q, k, v, scaling, lse = ctx.saved_tensors
        found = score_gradients(q, k, v, d_z, scaling, lse, ctx.edit, ctx.facts)
        d_lse = -(scaling * found.cells).sum(-1)
        return None, found.q, found.k, found.v, found.cells, d_lse, None, None


shares_with_gradient: Callable[..., tuple[Tensor, Tensor]] = SharesGradient.apply
output_with_gradient: Callable[..., Tensor] = OutputGradient.apply


class Gradients(NamedTuple):
    """Of q, k and v in their own dtype, and of `cells` [B, H, N, G]."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    cells: Tensor


def score_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    d_z: Tensor | None,
    cells: Tensor,
    lse: Tensor,
    edit: Edit,
    facts: Facts,
) -> Gradients:
    """What scores with ds_ij = A_ij cells_{i, g(j)} (dz_i . v_j) bring to q, k, v; without v, (dz_i . v_j) is 1."""
    batch, heads, _, keys = facts.shape
    dtype = accumulator(q)
    members = edit.members(dtype)
    shift = row_shift(lse, facts, dtype)
    cells = torch.where(lse[..., None] > -torch.inf, cells, 0.0).to(dtype)
    d_q = torch.zeros_like(q, dtype=dtype, memory_format=torch.contiguous_format)
    d_k = q.new_zeros(batch, heads, keys, q.shape[-1], dtype=dtype)  # per query head: the order of sums stays fixed
    d_v = None if v is None else q.new_zeros(batch, heads, keys, v.shape[-1], dtype=dtype)
    d_cells = torch.zeros_like(cells)
    adding = Lock()

    def add_share(task: Task) -> None:
        b, h, blocks = task
        head = HeadScores(q, k, task, facts)
        member = members[b, h % members.shape[1]]
        share_k = torch.zeros_like(d_k[b, h])
        if v is not None and d_z is not None and d_v is not None:
            values = real_rows(v, b, h // (heads // v.shape[1]), facts.key_mask, dtype)
            outputs = d_z[b, h].to(dtype)
            share_v = torch.zeros_like(d_v[b, h])
        for rows, seen in blocks:
            scores = head.unbiased(rows, seen)
            slope = None if facts.softcap is None else 1 - (scores / (facts.softcap * LOG2E)).square_()
            scores = head.add_bias(scores, rows, seen)
            block = head.hide(scores.sub_(shift[b, h, rows, None]).exp2_(), rows, seen, 0.0)
            scale = cells[b, h, rows] @ member[:, seen]
            if d_v is not None:
                share_v[seen].addmm_((block * scale).T, outputs[rows])
                block.mul_(outputs[rows] @ values[seen].T)
                d_cells[b, h, rows] = block @ member[:, seen].T
            block.mul_(scale)
            if slope is not None:
                block.mul_(slope)
            torch.mm(block, head.key_transposed[:, seen].T, out=d_q[b, h, rows])
            share_k[seen].addmm_(block.T, head.query[rows])
        with adding:  # a head has two shares, so the sum does not depend on which comes first
            d_k[b, h] += share_k
            if d_v is not None:
                d_v[b, h] += share_v

    for_each(tasks(facts), add_share)
    d_k *= 1 / LOG2E if facts.softcap is None else facts.softcap  # head.query holds q times more than the scale
    return Gradients(
        (d_q * facts.scale).to(q.dtype),
        _per_stored_head(d_k, k),
        None if v is None or d_v is None else _per_stored_head(d_v, v),
        d_cells,
    )


def _per_stored_head(gradient: Tensor, x: Tensor) -> Tensor:
    """[B, H, S, R] summed over the query heads that read each head of x [B, Hk, S, R], in x's dtype."""
    return torch.unflatten(gradient, 1, (x.shape[1], -1)).sum(2).to(x.dtype)
