"""The queries that read a layer, kept for policies that fit what they store to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from interp.interventions.base import Prompt
from interp.interventions.policies._eviction import Eviction, EvictionPlan
from interp.interventions.policies._summaries import Readers
from interp.seam.event import AttentionEvent

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer

Tensor = torch.Tensor
READERS = 256  # positions whose queries are fitted at most, so that the cost of fitting does not grow with the prompt's


class ReadingPlan(EvictionPlan):
    """An eviction that keeps, beside its scores, some of the queries of every layer until it compresses it: those of
    the last `policy.queries` of a text."""

    policy: Any

    def __init__(self, policy: Eviction, prompt: Prompt) -> None:
        super().__init__(policy, prompt)
        self.readers: dict[int, Readers] = {}

    def observe(self, layer: int, event: AttentionEvent) -> None:
        super().observe(layer, event)
        self.readers[layer] = readers_of(event, self.policy.queries)

    def compress(self, layer: int, stored: StoredLayer) -> None:
        super().compress(layer, stored)
        self.readers.pop(layer)

    def another_turn(self, layer: int, stored: StoredLayer, event: Callable[[], AttentionEvent]) -> None:
        """What was fitted stays as it is; where a turn exceeds a whole number, tokens go one by one."""
        sizes = self.needed(layer, stored)
        if not isinstance(self.policy.budget, int) or stored.kept <= max(sizes):
            return
        seen = event()
        if not stored.lost_something:
            self.observe(layer, seen)
            self.compress(layer, stored)
            return
        scores = self._by_stored_head(self.policy.scores(layer, seen), seen.k.shape[1])
        self._evict_one_by_one(layer, stored, self.worth_keeping(scores, stored), sizes)

    def worth_keeping(self, scores: Tensor, stored: StoredLayer) -> Tensor:
        """What stored tokens are worth when one of them has to go `[batch, head, token]`; methods override this."""
        return scores


def readers_of(event: AttentionEvent, share: float) -> Readers:
    """Queries of the last `share` of each text, READERS of them at most, from all query heads of each stored head."""
    (batch, heads, tokens, d), kv_heads = event.q.shape, event.k.shape[1]
    group = heads // kv_heads
    real = event.facts.get("query_mask")
    of_text = [tokens] * batch if real is None else real.sum(-1).tolist()
    at = pad_sequence([_positions(tokens, own, share) for own in of_text], batch_first=True, padding_value=-1)
    at = at.to(event.q.device)
    index = at.clamp_min(0)[:, None]  # what stands for a text with fewer readers is left out by its position
    rows = event.q.gather(2, index[..., None].expand(-1, heads, -1, d)).float() * event.scale
    lse = event.unedited.lse.gather(2, index.expand(-1, heads, -1))
    rows, lse = (torch.unflatten(x, 1, (kv_heads, group)).flatten(2, 3) for x in (rows, lse))
    before = event.facts.get("offset", event.k.shape[2] - tokens)
    at = at.where(at < 0, at + before)  # columns, where they follow others
    return Readers(rows, lse.clamp_min(-1e4), at.repeat(1, group))


def _positions(tokens: int, of_text: int, share: float) -> Tensor:
    """Of the queries that are kept: those of the last part of a text of `of_text` tokens, the newest of `tokens`
    columns, or READERS of them, evenly spaced."""
    span = min(of_text, max(1, int(of_text * share)))
    count = min(span, READERS)
    return tokens - span + torch.arange(1, count + 1) * span // max(1, count) - 1
