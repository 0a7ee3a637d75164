"""Recall (ours): what is evicted stays as summary tokens, fitted to how the prompt's own queries read it.

Merging an evicted token into the retained one that looks most like it costs quality on the demo model, with the key or
without, weighted by attention or not: the retained token answers other queries. So the evicted tokens get places of
their own, many tokens to a place, and what stands there is chosen by what queries read from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import torch

from interp.cache.segments import POSITION, Segment
from interp.errors import InterpError
from interp.interventions.base import Plan, Prompt
from interp.interventions.policies._eviction import EvictionPlan, chosen
from interp.interventions.policies._summaries import Readers, clusters, group_sums, summarised
from interp.interventions.policies.h2o import H2OPrefill
from interp.seam.event import AttentionEvent

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer

Tensor = torch.Tensor
READERS = 256  # positions whose queries are fitted at most, so that the cost of fitting does not grow with the prompt's


@dataclass(frozen=True)
class Recall(H2OPrefill):
    """Evict as `H2OPrefill` does, and let summary tokens stand for what went, within the same budget; acts once.

    The evicted tokens of a head are clustered by their keys, one cluster a summary token. Its key and a bias are the
    ridge regression of the cluster's log-sum-exp on the prompt's last queries, its value the cluster's mean value
    weighted by the attention that those queries paid; see `_summaries`. The bias is one fp32 number a summary token.

    Cost, besides `H2OPrefill`'s, once: for each stored head, with E tokens evicted, M summary tokens, d channels and R
    rows (256 for every query head that reads it), 10 E M d + 2 E R d + 2 M R d² operations: on the demo model, at a
    fifth of 8,192 tokens, a quarter of what the prompt's own attention takes. The working memory is that of one head
    at a time, M R numbers and a few blocks of 2 MB, beside the copy of the evicted tokens that every eviction makes.

    Args:
        summaries: share of the budget that goes to summary tokens.
        queries: share of the prompt, at its end, whose queries are fitted; 256 evenly spaced ones if it has more.
        ridge: strength of the pull towards the cluster's mean key, as a share of the mean query variance.

    Examples:
        >>> with lens.apply(interp.Recall(budget=0.5)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [23]
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


class RecallPlan(EvictionPlan):
    policy: Recall

    def __init__(self, policy: Recall, prompt: Prompt) -> None:
        super().__init__(policy, prompt)
        self.readers: dict[int, Readers] = {}

    def observe(self, layer: int, event: AttentionEvent) -> None:
        super().observe(layer, event)
        tokens, kv_heads = event.q.shape[2], event.k.shape[1]
        group = event.q.shape[1] // kv_heads
        at = self._positions(tokens).to(event.q.device)
        rows = torch.unflatten(event.q[:, :, at].float() * event.scale, 1, (kv_heads, group)).flatten(2, 3)
        lse = torch.unflatten(event.unedited.lse[:, :, at], 1, (kv_heads, group)).flatten(2, 3)
        real = event.facts.get("query_mask")
        at = at.expand(rows.shape[0], -1) if real is None else at.where(real[:, at].bool(), -1)
        self.readers[layer] = Readers(rows, lse.clamp_min(-1e4), at.repeat(1, group))

    def _positions(self, tokens: int) -> Tensor:
        """Of the queries that are fitted: those of the prompt's last part, or READERS of them, evenly spaced."""
        span = max(1, int(tokens * self.policy.queries))
        count = min(span, READERS)
        return tokens - span + torch.arange(1, count + 1) * span // count - 1

    def compress(self, layer: int, stored: StoredLayer) -> None:
        super().compress(layer, stored)
        del self.readers[layer]

    def evict(self, layer: int, stored: StoredLayer, scores: Tensor, capacity: int, recent: int) -> None:
        count = self.policy.summary_tokens(capacity)
        kept, dropped = chosen(scores, stored.padding, capacity - recent - count, recent, self.policy.sinks)
        lost = replace(stored.whole(), mass=scores).take(dropped)
        summaries, number, share = self._summaries(self.readers[layer], lost, stored.padding, count)
        stored.summarise(kept, summaries, recent, marked=self.ledger is not None)
        self.note(layer, stored, lost)
        if self.ledger is not None:
            self.ledger[-1] = replace(self.ledger[-1], summary=number, share=share)

    def _summaries(
        self, readers: Readers, lost: Segment, padding: Tensor | None, count: int
    ) -> tuple[Segment, Tensor, Tensor]:
        """`count` tokens in place of the evicted ones; each stands at the mean position of its cluster.

        Also, of each evicted token `[batch, head, E]`, the number of its summary, -1 for padding, and how much of that
        it is.
        """
        at = lost.at()
        real = torch.ones_like(at, dtype=torch.bool) if padding is None else at >= padding[:, None, None]
        visible_from = at.masked_fill(~real, torch.iinfo(at.dtype).max)
        made, places = [], []
        number, share = torch.full(at.shape, -1, device=at.device), torch.zeros(at.shape, device=at.device)
        for b, h in product(*map(range, at.shape[:2])):  # one after the other, for the memory
            some = real[b, h] | ~real[b, h].any()  # padding only where there is nothing else
            keys, values = lost.keys[b, h, some].float(), lost.values[b, h, some].float()
            group = clusters(keys, count)
            *token, of_group = summarised(
                readers.head(b, h), keys, values, visible_from[b, h, some], group, count, self.policy.ridge
            )
            made.append(token)
            number[b, h, some], share[b, h, some] = group.masked_fill(~real[b, h, some], -1), of_group.detach()
            weight = real[b, h, some].float()
            total, size = group_sums(torch.stack([weight * at[b, h, some], weight], -1), group, count).unbind(-1)
            places.append(total / size.clamp_min(1))
        keys, values, bias, place = (
            torch.unflatten(torch.stack(list(parts)), 0, at.shape[:2]) for parts in (*zip(*made, strict=True), places)
        )
        dtype = lost.keys.dtype
        summaries = Segment(keys.to(dtype), values.to(dtype), place.to(POSITION), log_count=bias)
        return summaries, number, share
