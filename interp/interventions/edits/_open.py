"""Edited logits in the open: what no kernel computes, a block of rows at a time.

A block holds the scores of a few rows with all keys. So memory stays O(rows of a block x keys), with gradients too: a
block is computed again on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from interp_kernels import Attended
from interp_kernels.explicit import clear_padding, per_query_head
from interp_kernels.facts import resolve
from jaxtyping import Float, Int
from torch.utils.checkpoint import checkpoint

from interp.interventions.edits._members import at_every_row
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor
BLOCK_CELLS = 1 << 22
"""Scores of a block, over all texts and heads: 16 MB in fp32."""
Rule = Callable[[Tensor], Tensor]


@dataclass
class OpenEvent(AttentionEvent):
    """A layer's attention with every logit scaled and biased by row and group of its key."""

    groups: Int[Tensor, "batch stored_head_or_1 key"] = field(kw_only=True)
    logit_scale: Float[Tensor, "batch head query group"] = field(kw_only=True)
    logit_bias: Float[Tensor, "batch head query group"] = field(kw_only=True)

    def block(self, rows: slice) -> tuple[Float[Tensor, "batch head row key"], Float[Tensor, "batch head row"]]:
        """Some rows of the pattern, and their lse; with gradients."""
        scale, bias = self.logit_scale[:, :, rows], self.logit_bias[:, :, rows]
        facts = resolve("attention edits", self.q[:, :, rows], self.k, **self.maths | self.facts_of(rows))
        heads, lowest = self.q.shape[1], torch.finfo(scale.dtype).min
        q = clear_padding(self.q[:, :, rows].to(scale.dtype), facts.query_mask)
        k = clear_padding(per_query_head(self.k, heads, scale.dtype), facts.key_mask)
        scores = facts.scale * q @ k.mT
        if facts.softcap is not None:
            scores = facts.softcap * torch.tanh(scores / facts.softcap)
        scores = rescored(scores, self.groups, scale, bias)
        if facts.bias is not None:
            scores = scores + facts.bias.to(scores.dtype).clamp_min(lowest / 2)
        hidden = ~facts.visible()
        scores = scores.masked_fill(hidden, lowest)
        lse = scores.logsumexp(-1).masked_fill(hidden.all(-1), -torch.inf)
        if facts.sinks is not None:
            column = facts.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, column], -1)
        return scores.softmax(-1)[..., : hidden.shape[-1]].masked_fill(hidden, 0.0), lse

    def _rows(self) -> Iterator[slice]:
        batch, heads, queries, _ = self.q.shape
        step = max(1, BLOCK_CELLS // max(1, batch * heads * self.k.shape[2]))
        yield from (slice(start, min(start + step, queries)) for start in range(0, queries, step))

    @torch.no_grad()
    def _statistics(self, *asked: str) -> Attended:
        lse, entropy, square = (self.logit_scale.new_empty(self.q.shape[:3]) for _ in range(3))
        mass = lse.new_zeros(*lse.shape[:2], self.k.shape[2])
        for rows in self._rows():
            pattern, lse[:, :, rows] = self.block(rows)
            entropy[:, :, rows] = torch.special.entr(pattern).sum(-1)
            square[:, :, rows] = pattern.square().sum(-1)
            mass += pattern.sum(2)
        return Attended(None, lse, entropy, square, mass)

    @torch.no_grad()
    def apply(self, x: Float[Tensor, "batch head key r"]) -> Float[Tensor, "batch head query r"]:
        x = self._as_values(x)
        return torch.cat([self.block(rows)[0] @ x for rows in self._rows()], 2)

    @torch.no_grad()
    def transpose_apply(self, y: Float[Tensor, "batch head query r"]) -> Float[Tensor, "batch head key r"]:
        y = clear_padding(y.to(self.logit_scale.dtype), self.facts.get("query_mask"))
        total = y.new_zeros(*y.shape[:2], self.k.shape[2], y.shape[-1])
        for rows in self._rows():
            total += self.block(rows)[0].mT @ y[:, :, rows]
        return total

    def gram_apply(self, x: Float[Tensor, "batch head key r"]) -> tuple[Tensor, Tensor]:
        applied = self.apply(x)
        return applied, self.transpose_apply(applied)

    @torch.no_grad()
    def pattern(self) -> Float[Tensor, "batch head query key"]:
        return self.block(slice(0, self.q.shape[2]))[0]

    def reweighted(
        self, x: Float[Tensor, "batch head key r"], groups: Int[Tensor, "batch head_or_1 key"], rule: Rule, count: int
    ) -> Float[Tensor, "batch head query r"]:
        """A' x, where A'_ij is A_ij times what `rule` gives key j's group in row i, from the masses of the row's
        groups. With gradients."""
        x = self._as_values(x)
        members = torch.nn.functional.one_hot(groups.long(), count).to(x.dtype)
        factors = rule(self._in_blocks(lambda pattern, rows: pattern @ members))
        return self._in_blocks(
            lambda pattern, rows: (pattern * factors[:, :, rows].gather(-1, at_every_row(groups, pattern))) @ x
        )

    def _in_blocks(self, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """function(pattern of some rows, which rows), put together; on the way back blocks are computed again."""

        def one(rows: slice) -> Tensor:
            return function(self.block(rows)[0], rows)

        if not torch.is_grad_enabled():
            return torch.cat([one(rows) for rows in self._rows()], 2)
        return torch.cat([checkpoint(one, rows, use_reentrant=False) for rows in self._rows()], 2)

    def _as_values(self, x: Tensor) -> Tensor:
        """x of every query head, padding cleared, in the dtype of the pattern."""
        return clear_padding(per_query_head(x, self.q.shape[1], self.logit_scale.dtype), self.facts.get("key_mask"))


def rescored(
    scores: Float[Tensor, "batch head row key"],
    groups: Int[Tensor, "batch stored_head_or_1 key"],
    scale: Float[Tensor, "batch head row group"],
    bias: Float[Tensor, "batch head row group"],
) -> Float[Tensor, "batch head row key"]:
    """Scores of visible cells, each scaled and biased as its row and the group of its key say."""
    at = at_every_row(groups, scores)
    return scores.to(scale.dtype) * scale.gather(-1, at) + bias.gather(-1, at)
