"""Recall (ours): what is evicted stays as summary tokens, fitted to how the prompt's own queries read it.

Merging an evicted token into the retained one that looks most like it costs quality on the demo model, with the key or
without, weighted by attention or not: the retained token answers other queries. So the evicted tokens get places of
their own, many tokens to a place, and what stands there is chosen by what queries read from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from jaxtyping import Float

from interp.errors import InterpError
from interp.event import AttentionEvent
from interp.interventions._eviction import EvictionPlan, chosen
from interp.interventions._summaries import clusters, summarised
from interp.interventions.base import Plan, Prompt
from interp.interventions.h2o import H2OPrefill
from interp.segments import POSITION, Segment, joined

if TYPE_CHECKING:
    from interp.cache import StoredLayer

Tensor = torch.Tensor


@dataclass(frozen=True)
class Recall(H2OPrefill):
    """Evict as `H2OPrefill` does, and let summary tokens stand for what went, within the same budget; acts once.

    The evicted tokens of a head are clustered by their keys, one cluster a summary token. Its key and a bias are the
    ridge regression of the cluster's log-sum-exp on the prompt's last queries, its value the cluster's mean value
    weighted by the attention that those queries paid; see `_summaries`. The bias is one fp32 number a summary token.

    Args, besides `H2OPrefill`'s (sinks 4, recent_share 1/4):
        summaries: share of the budget that goes to summary tokens.
        queries: share of the prompt, at its end, whose queries are fitted.
        ridge: strength of the pull towards the cluster's mean key, as a share of the mean query variance.
    """

    name: ClassVar[str] = "recall"
    sinks: int = 4
    recent_share: float = 0.25
    summaries: float = 0.3
    queries: float = 0.25
    ridge: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.summaries < 1 or not 0 < self.queries <= 1 or not self.ridge > 0:
            raise InterpError("recall: summaries and queries should be shares above 0, ridge above 0.")
        if self.summaries + self.recent_share >= 1:
            raise InterpError(
                "recall: summaries and recent_share together leave no room; they should add up to under 1."
            )

    def summary_tokens(self, capacity: int) -> int:
        """How many of the tokens kept are summaries."""
        return max(1, int(self.summaries * capacity))

    def check(self, prompt: Prompt) -> None:
        super().check(prompt)
        if prompt.cfg.attn_softcap is not None:
            raise InterpError(
                f"recall: {prompt.cfg.architecture} caps its attention logits, which a fitted key cannot follow."
            )
        for layer in prompt.layers:
            capacity = self.capacity(prompt, layer)
            if capacity < self.sinks + self.recent_tokens(capacity) + self.summary_tokens(capacity):
                raise InterpError(
                    f"recall: a budget of {capacity} tokens has no room for {self.sinks} sinks, "
                    f"{self.recent_tokens(capacity)} recent tokens and {self.summary_tokens(capacity)} summaries."
                )

    def begin(self, prompt: Prompt) -> Plan:
        return RecallPlan(self, prompt)


class _Readers(NamedTuple):
    """The prompt's last queries, with those of a group's heads side by side."""

    rows: Float[Tensor, "batch head row d"]
    """Queries times the scale."""
    lse: Float[Tensor, "batch head row"]
    at: Float[Tensor, " row"]
    """Position of each row."""
    real: Float[Tensor, "batch row"]
    """0 for padding."""


class RecallPlan(EvictionPlan):
    policy: Recall

    def __init__(self, policy: Recall, prompt: Prompt) -> None:
        super().__init__(policy, prompt)
        self.readers: dict[int, _Readers] = {}

    def observe(self, layer: int, event: AttentionEvent) -> None:
        super().observe(layer, event)
        tokens, kv_heads = event.q.shape[2], event.k.shape[1]
        group = event.q.shape[1] // kv_heads
        first = tokens - max(1, int(tokens * self.policy.queries))
        rows = (event.q[:, :, first:].float() * event.scale).unflatten(1, (kv_heads, group)).flatten(2, 3)
        lse = event.lse[:, :, first:].unflatten(1, (kv_heads, group)).flatten(2, 3)
        real = event.facts.get("query_mask")
        real = torch.ones(rows.shape[0], tokens - first) if real is None else real[:, first:].float()
        at = torch.arange(first, tokens, device=rows.device).repeat(group)
        self.readers[layer] = _Readers(rows, lse.clamp_min(-1e4), at, real.to(rows.device).repeat(1, group))

    def evict(self, layer: int, stored: StoredLayer, scores: Tensor, capacity: int, recent: int) -> None:
        whole = joined(stored.segments)
        count = self.policy.summary_tokens(capacity)
        kept, dropped = chosen(scores, stored.padding, capacity - recent - count, recent, self.policy.sinks)
        lost = replace(whole, mass=scores).take(dropped)
        self.note(layer, stored, lost)
        summary = self._summary(self.readers.pop(layer), lost, stored.padding, count)
        tail = whole.part(slice(len(whole) - recent, len(whole)))
        stored.segments = [whole.take(kept), summary, tail]

    def _summary(self, readers: _Readers, lost: Segment, padding: Tensor | None, count: int) -> Segment:
        """`count` tokens in place of the evicted ones; each stands at the mean position of its cluster."""
        keys, values, at = lost.keys.float(), lost.values.float(), lost.at()
        unseen = at[:, :, None] > readers.at[:, None]
        real = torch.ones_like(at, dtype=torch.bool) if padding is None else at >= padding[:, None, None]
        unseen |= ~real[:, :, None]
        unseen = unseen | (readers.real == 0)[:, None, :, None]
        log_attention = (readers.rows @ keys.mT - readers.lse[..., None]).masked_fill(unseen, -torch.inf)
        cluster = clusters(keys, count)
        made = summarised(readers.rows, log_attention, readers.lse, keys, values, cluster, count, self.policy.ridge)
        member = torch.nn.functional.one_hot(cluster, count) * real[..., None].float()
        place = (member.mT @ at.float()[..., None])[..., 0] / member.sum(2).clamp_min(1)
        dtype = lost.keys.dtype
        return Segment(made.keys.to(dtype), made.values.to(dtype), place.to(POSITION), log_count=made.bias)
