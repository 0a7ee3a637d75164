"""Pattern edits of a few rows, as a step of generation has them: with scores in the open.

The scores of one row are as few as its keys, and what they cost is the number of calls of torch, on a processor and on
a GPU alike: the masses of groups and their factors by key are products with a small array here, where the kernels,
which keep no scores, put together what each group came to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from interp_kernels.explicit import capped, clear_padding
from interp_kernels.facts import resolve
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from interp.interventions.edits._reweighting import Reweighting
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

    def attend(self, v: Float[Tensor, "batch kv_head key d_value"]) -> Float[Tensor, "batch head row d_value"]:
        batch, heads, rows, keys = self.pattern.shape
        together = self.pattern.reshape(batch * v.shape[1], -1, keys)
        return torch.bmm(together, v.to(together.dtype).flatten(0, 1)).view(batch, heads, rows, v.shape[-1])


def fit(event: AttentionEvent) -> bool:
    """Whether an event's rows are few, and nobody asks for gradients through them."""
    batch, heads, rows, _ = event.q.shape
    if rows > FEW_ROWS or torch.is_grad_enabled() or batch * heads * rows * event.k.shape[2] > FEW_CELLS:
        return False
    return event.k.dtype in (torch.float32, torch.float64) or event.k.numel() + event.v.numel() <= FEW_CELLS


def edited(event: AttentionEvent, reweighting: Reweighting) -> FewRows:
    """The rows of an event as pattern edits leave them. The logits are the model's own."""
    pattern = _pattern(event)
    batch, heads, rows, keys = pattern.shape
    members = reweighting.one_hot(pattern.dtype)
    apart = members.shape[1]  # heads whose keys are grouped in a way of their own
    members = members.expand(batch, -1, -1, -1).flatten(0, 1)
    masses = torch.bmm(pattern.view(batch * apart, -1, keys), members.mT).view(batch, heads, rows, -1)
    factors = reweighting.factors(masses)
    by_key = torch.bmm(factors.reshape(batch * apart, -1, factors.shape[-1]), members).view_as(pattern)
    return FewRows(pattern.mul_(by_key), (factors != 1).any(-1))


def _pattern(event: AttentionEvent) -> Float[Tensor, "batch head row key"]:
    """The model's own pattern, learned sink column dropped; zero in padded rows."""
    q, k, facts = event.q, event.k, event.facts
    dtype = torch.promote_types(q.dtype, torch.float32)
    (batch, heads, rows, _), (_, kv_heads, keys, _) = q.shape, k.shape
    k = clear_padding(k, facts.get("key_mask"))
    by_stored_head = (q.to(dtype) * event.scale).reshape(batch * kv_heads, -1, q.shape[-1])
    scores = torch.bmm(by_stored_head, k.to(dtype).flatten(0, 1).mT).view(batch, heads, rows, keys)
    scores = capped(scores, event.softcap)
    if facts.get("bias") is not None:
        scores += facts["bias"].to(dtype)
    hidden = None if _all_seen(event) else ~resolve("attention edits", q, k, **event.maths).visible()
    if hidden is not None:
        scores.masked_fill_(hidden, torch.finfo(dtype).min)
    if event.sinks is not None:
        column = event.sinks.to(dtype)[:, None, None].expand(batch, -1, rows, 1)
        scores = torch.cat([scores, column], -1)
    pattern = scores.softmax(-1)
    if event.sinks is not None:
        pattern = pattern[..., :-1].contiguous()
    return pattern if hidden is None else pattern.masked_fill_(hidden, 0.0)


def _all_seen(event: AttentionEvent) -> bool:
    """Whether the facts hide no key from any row, told without a look at a tensor: so it is for one row at the end."""
    facts, keys = event.facts, event.k.shape[2]
    if any(facts.get(name) is not None for name in ("mask", "key_mask", "query_mask", "bias")):
        return False
    first = facts.get("offset")
    first = keys - event.q.shape[2] if first is None else first
    window = facts.get("window")
    causal = facts.get("causal", True) or window is not None
    return (not causal or first >= keys - 1) and (window is None or first + event.q.shape[2] <= window)
