"""Recall (ours): what is evicted stays as summary tokens, fitted to how the prompt's own queries read it.

Merging an evicted token into the retained one that looks most like it costs quality on the demo model, with the key or
without, weighted by attention or not: the retained token answers other queries. So the evicted tokens get places of
their own, many tokens to a place, and what stands there is chosen by what queries read from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import pad

from interp.cache.segments import NOWHERE, POSITION, Segment
from interp.errors import InterpError
from interp.interventions.base import Plan, Prompt
from interp.interventions.policies._choosing import choose
from interp.interventions.policies._readers import ReadingPlan
from interp.interventions.policies._summaries import Readers, clusters, group_sums, summarised
from interp.interventions.policies.h2o import H2OPrefill

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer
    from interp.seam.config import LensConfig

Tensor = torch.Tensor


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
        queries: share of the text, at its end, whose queries are fitted; 256 evenly spaced ones if it has more.
        ridge: strength of the pull towards the cluster's mean key, as a share of the mean query variance.

    Examples:
        >>> with lens.apply(interp.Recall(budget=0.5)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [23]
    """

    name: ClassVar[str] = "recall"
    values_apart: ClassVar[bool] = True
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

    def always(self, capacity: int) -> int:
        return super().always(capacity) + self.summary_tokens(capacity)

    def unfit_for_latents(self, cfg: LensConfig) -> str | None:
        if set(cfg.latent_layers).intersection(cfg.indexed_layers):
            return "its queries choose tokens by an index, and a summary is none that could be chosen"
        return super().unfit_for_latents(cfg)

    def check(self, prompt: Prompt) -> None:
        if prompt.cfg.attn_softcap is not None:
            raise InterpError(
                f"recall: {prompt.cfg.architecture} caps its attention logits, which a fitted key cannot follow."
            )
        for layer in prompt.layers:
            capacity = self.size(prompt, layer)
            if capacity < min(prompt.tokens, self.always(capacity)):
                raise InterpError(
                    f"recall: a budget of {capacity} tokens has no room for {self.sinks} sinks, "
                    f"{self.recent_tokens(capacity)} recent tokens and {self.summary_tokens(capacity)} summaries."
                )

    def begin(self, prompt: Prompt) -> Plan:
        return RecallPlan(self, prompt)


class RecallPlan(ReadingPlan):
    policy: Recall

    def evict(
        self, layer: int, stored: StoredLayer, scores: Tensor, sizes: Sequence[int], recent: Sequence[int]
    ) -> None:
        counts = [self.policy.summary_tokens(size) for size in sizes]
        rest = [min(size, stored.seen) - count for size, count in zip(sizes, counts, strict=True)]
        choice = choose(scores, stored.places(), stored.padding, rest, recent, self.policy.sinks)
        lost = self._lost(stored, scores, choice)
        summaries, number, share = self._summaries(self.readers[layer], lost, stored.padding, counts)
        stored.keep(choice.kept, choice.recent, unused=choice.unused)
        # marked for who asks why: where channels are pruned too, that takes a number a token
        marked = replace(summaries, summary=None if self.ledger is None else range(len(summaries)))
        stored.lay_before_recent(*stored.segments[:-1], marked)
        self.remember(layer, stored, sizes, recent)
        self.note(layer, stored, lost)
        if self.ledger is not None:
            self.ledger[-1] = replace(self.ledger[-1], summary=number, share=share)

    def worth_keeping(self, scores: Tensor, stored: StoredLayer) -> Tensor:
        """Summaries stay as they are; what the turn takes is made up for by tokens, which go without one."""
        summary = torch.cat([torch.full((len(s),), s.log_count is not None) for s in stored.segments])
        return scores.masked_fill(summary.to(scores.device), torch.inf)

    def _summaries(
        self, readers: Readers, lost: Segment, padding: Tensor | None, counts: Sequence[int]
    ) -> tuple[Segment, Tensor, Tensor]:
        """As many tokens of each text as `counts` says in place of the evicted ones; each stands at the mean position
        of its cluster. What a text has of them beyond that stands nowhere.

        Also, of each evicted token `[batch, head, E]`, the number of its summary, -1 for padding, and how much of that
        it is.
        """
        at, most = lost.at(), max(counts)
        real = at >= (0 if padding is None else padding[:, None, None])
        visible_from = at.masked_fill(~real, torch.iinfo(at.dtype).max)
        made, places = [], []
        number, share = torch.full(at.shape, -1, device=at.device), torch.zeros(at.shape, device=at.device)
        for b, h in product(*map(range, at.shape[:2])):  # one after the other, for the memory
            count, mine = counts[b], real[b, h]
            if int(mine.sum()) <= count:  # there is a place for each
                token, group, of_group = _alone(lost.keys[b, h, mine], lost.values[b, h, mine])
                place = at[b, h, mine].float()
            else:
                keys, values = lost.keys[b, h, mine].float(), lost.values[b, h, mine].float()
                group = clusters(keys, count)
                *token, of_group = summarised(
                    readers.head(b, h), keys, values, visible_from[b, h, mine], group, count, self.policy.ridge
                )
                total, size = group_sums(
                    torch.stack([at[b, h, mine].float(), torch.ones_like(keys[:, 0])], -1), group, count
                ).unbind(-1)
                place = torch.where(size > 0, total / size.clamp_min(1), 0 if padding is None else NOWHERE)
            number[b, h, mine], share[b, h, mine] = group, of_group.detach()
            beyond = most - len(place)
            made.append([pad(x, (0, 0) * (x.ndim - 1) + (0, beyond)) for x in token])
            places.append(pad(place, (0, beyond), value=NOWHERE))
        keys, values, bias, place = (
            torch.unflatten(torch.stack(list(parts)), 0, at.shape[:2]) for parts in (*zip(*made, strict=True), places)
        )
        dtype = lost.keys.dtype
        summaries = Segment(keys.to(dtype), values.to(dtype), place.to(POSITION), log_count=bias)
        return summaries, number, share


def _alone(keys: Tensor, values: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Tokens `[token, d]` that each stand for themselves: ([keys, values, biases], groups, shares)."""
    one = torch.ones(len(keys), device=keys.device)
    return [keys.float(), values.float(), torch.zeros_like(one)], torch.arange(len(keys), device=keys.device), one
