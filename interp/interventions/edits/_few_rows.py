"""Pattern edits of a few rows, as a step of generation has them: with scores in the open.

The scores of one row are as few as its keys, and what they cost is the number of calls of torch, on a processor and on
a GPU alike: the masses of groups and their factors by key are products with a small array here, where the kernels,
which keep no scores, put together what each group came to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from interp_kernels.checks import accumulator
from interp_kernels.explicit import capped, clear_padding
from interp_kernels.facts import resolve
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from interp.seam.event import AttentionEvent

Tensor = torch.Tensor
FEW_ROWS = 8
FEW_CELLS = 1 << 22
"""Scores of all texts and heads: 16 MB in fp32. Keys and values of fewer bits are copied, and may be as many."""


@dataclass(frozen=True)
class FewRows:
    """A few rows of attention, edited."""

    pattern: Float[Tensor, "batch head row key"]
    changed: Bool[Tensor, "batch head row"]
    """Rows of which an edit changed something."""

    def attend(self, event: AttentionEvent) -> Float[Tensor, "batch head row d_value"]:
        """What the rows read from the event's values."""
        v, (batch, heads, rows, keys) = clear_padding(event.v, event.facts.get("key_mask")), self.pattern.shape
        together = self.pattern.reshape(batch * v.shape[1], -1, keys)
        return torch.bmm(together, _wide(v, together.dtype).flatten(0, 1)).view(batch, heads, rows, v.shape[-1])


def fit(event: AttentionEvent) -> bool:
    """Whether an event's rows are few, and nobody asks for gradients through them."""
    batch, heads, rows, _ = event.q.shape
    if rows > FEW_ROWS or torch.is_grad_enabled() or batch * heads * rows * event.k.shape[2] > FEW_CELLS:
        return False
    return event.k.dtype in (torch.float32, torch.float64) or event.k.numel() + event.v.numel() <= FEW_CELLS


def edited(
    event: AttentionEvent, members: Float[Tensor, "batch head_or_1 group key"], rule: Callable[[Tensor], Tensor]
) -> FewRows:
    """The rows of an event as pattern edits leave them; the logits are the model's own.

    members: 1 where a key is in a group, else 0. rule: factors `[batch, head, row, group]` from the groups' masses.
    """
    (batch, heads, rows, _), (apart, count, keys) = event.q.shape, members.shape[1:]
    members = (members if len(members) == batch else members.expand(batch, -1, -1, -1)).reshape(-1, count, keys)
    pattern = _pattern(event).view(batch * apart, -1, keys)
    masses = torch.bmm(pattern, members.mT).view(batch, heads, rows, count)
    factors = rule(masses)
    by_key = torch.bmm(factors.reshape(batch * apart, -1, count), members)
    return FewRows((pattern * by_key).view(batch, heads, rows, keys), (factors != 1).any(-1))


def _pattern(event: AttentionEvent) -> Float[Tensor, "batch_head row key"]:
    """The model's own pattern, learned sink column dropped; zero in padded rows."""
    q, k, facts = event.q, event.k, event.facts
    dtype = accumulator(q)
    (batch, heads, rows, size), (kv_heads, keys) = q.shape, k.shape[1:3]
    k = clear_padding(k, facts.get("key_mask"))
    by_stored_head = (_wide(q, dtype) * event.scale).reshape(batch * kv_heads, -1, size)
    scores = torch.bmm(by_stored_head, _wide(k, dtype).flatten(0, 1).mT)
    if _plain(event):
        return scores.softmax(-1)
    scores = capped(scores, event.softcap).view(batch, heads, rows, keys)
    if facts.get("bias") is not None:
        scores += facts["bias"].to(dtype)
    hidden = ~resolve("attention edits", q, k, **event.maths).visible()
    scores.masked_fill_(hidden, torch.finfo(dtype).min)
    if event.sinks is not None:
        column = event.sinks.to(dtype)[:, None, None].expand(batch, -1, rows, 1)
        scores = torch.cat([scores, column], -1)
    return scores.softmax(-1)[..., :keys].masked_fill(hidden, 0.0).contiguous()


def _wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _plain(event: AttentionEvent) -> bool:
    """Whether every row is a plain softmax over all keys, as far as is told without a look at a tensor: so it is with
    one row at the end of a text alone."""
    facts, rows, keys = event.facts, event.q.shape[2], event.k.shape[2]
    given = (event.softcap, event.sinks, *(facts.get(name) for name in ("mask", "key_mask", "query_mask", "bias")))
    if any(fact is not None for fact in given):
        return False
    window, first = facts.get("window"), facts.get("offset")
    first = keys - rows if first is None else first
    causal = facts.get("causal", True) or window is not None
    return (not causal or first >= keys - 1) and (window is None or first + rows <= window)
