"""What token policies share: a capacity, a score for every token, and taking tokens out of a live cache.

A method says how it scores tokens and how many recent ones it always keeps; `EvictionPlan` does the rest. Padding goes
first, sinks and recent tokens never go, of equal scores the earlier token stays.

A method that also acts at every step is a `StepPlan` beside this file's `EvictionPlan`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from interp_kernels import Merge, Merged
from jaxtyping import Float, Int

from interp.cache.segments import Segment
from interp.errors import InterpError
from interp.interventions.base import CachePolicy, Entry, Plan, Prompt
from interp.interventions.policies._merging import merge_into, places
from interp.seam.event import AttentionEvent

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer

Tensor = torch.Tensor


@dataclass(frozen=True)
class Eviction(CachePolicy):
    """Keep the `budget` best tokens of the prompt in every key/value head and drop the others.

    Args:
        budget: tokens that stay: a float is a share of the prompt's tokens, a whole number that many tokens. In a
            padded batch the share is one of all columns, padding too, so a text keeps more than it would alone; with
            a whole number it keeps the same.
        sinks: tokens at the text's beginning that always stay.
    """

    stage: ClassVar[Literal["tokens", "channels"]] = "tokens"
    granularity: ClassVar[str] = "kv_head"
    budget: float | int = 0.2
    sinks: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budget > 0:
            raise InterpError(f"{self.name}: budget should be above 0, found {self.budget}.")
        if isinstance(self.budget, float) and self.budget > 1:
            raise InterpError(
                f"{self.name}: budget is a share of the prompt, at most 1, or a whole number of tokens, found "
                f"{self.budget}."
            )
        if self.sinks < 0:
            raise InterpError(f"{self.name}: sinks should be at least 0, found {self.sinks}.")

    def capacity(self, prompt: Prompt, layer: int) -> int:
        """Tokens that stay in each head of a layer."""
        return tokens_of(self.budget, prompt.tokens)

    def recent_tokens(self, capacity: int) -> int:
        """How many of them are the newest ones."""
        return 0

    @property
    def queries_needed(self) -> int | None:
        """How many of the prompt's newest queries the scores look at; None: all of them."""
        return None

    @abstractmethod
    def scores(self, layer: int, event: AttentionEvent) -> Float[Tensor, "batch head token"]:
        """How much each token of the prompt is worth keeping, by query head or key/value head."""

    def check(self, prompt: Prompt) -> None:
        for layer in prompt.layers:
            capacity = self.capacity(prompt, layer)
            fixed = self.sinks + self.recent_tokens(capacity)
            if capacity < max(1, fixed):
                raise InterpError(
                    f"{self.name}: a budget of {capacity} of {prompt.tokens} tokens (layer {layer}) has no room for "
                    f"{self.sinks} sinks and {fixed - self.sinks} recent tokens; raise budget."
                )

    def begin(self, prompt: Prompt) -> Plan:
        return EvictionPlan(self, prompt)


def tokens_of(budget: float | int, tokens: int) -> int:
    """A budget in tokens: a float is a share of `tokens` (rounded down), an int the number itself."""
    return budget if isinstance(budget, int) else int(budget * tokens + 1e-9)


class EvictionPlan(Plan):
    """An `Eviction` at work on one sequence: the prompt is cut once.

    A method that also acts at steps derives from it and sets `each_step`; what it may rely on is said in `Plan`.
    """

    keeps_mass: ClassVar[bool] = False
    """Whether stored tokens go on collecting the attention that they receive, starting from their score."""
    newest_query_only: ClassVar[bool] = False
    """Whether that account holds what the newest query alone pays, instead of a sum over all."""

    def __init__(self, policy: Eviction, prompt: Prompt) -> None:
        self.policy, self.prompt = policy, prompt
        self.queries_needed = policy.queries_needed
        self.scored: dict[int, Float[Tensor, "batch head token"]] = {}
        self.recent: dict[int, int] = {}
        """Newest tokens that are never evicted, of each layer that was compressed."""
        self.threshold: dict[int, Float[Tensor, "batch head"]] = {}
        """What similarity had to reach for the last merge, by layer, of methods that merge."""

    def observe(self, layer: int, event: AttentionEvent) -> None:
        self.scored[layer] = self._by_stored_head(self.policy.scores(layer, event), event.k.shape[1])

    def _by_stored_head(self, scores: Tensor, kv_heads: int) -> Tensor:
        """Scores of query heads summed over those that read the same stored head."""
        if self.policy.granularity == "query_head" or scores.shape[1] == kv_heads:
            return scores.float()
        return torch.unflatten(scores.float(), 1, (kv_heads, -1)).sum(2)

    def compress(self, layer: int, stored: StoredLayer) -> None:
        scores = self.scored.pop(layer)
        capacity = self.policy.capacity(self.prompt, layer)
        if capacity < stored.seen:
            self.evict(layer, stored, scores, capacity, self.policy.recent_tokens(capacity))

    def evict(self, layer: int, stored: StoredLayer, scores: Tensor, capacity: int, recent: int) -> None:
        """Keep `capacity` tokens of a layer, `recent` of them the newest."""
        kept, dropped = chosen(scores, stored.padding, capacity - recent, recent, self.policy.sinks)
        lost = replace(stored.whole(scores.shape[1]), mass=scores).take(dropped)
        mass = scores.clone() if self.keeps_mass else None
        stored.keep(kept, recent, mass=mass, newest_query_only=self.newest_query_only)
        self.lose(layer, stored, lost, *stored.segments)
        self.recent[layer] = recent

    def merge(self, layer: int) -> Merge | None:
        """What becomes of tokens that are evicted; None: nothing. Methods that merge override this."""
        return None

    def lose(self, layer: int, stored: StoredLayer, lost: Segment, *retained: Segment) -> None:
        """Tokens are evicted: merge them into retained ones, in place, if the method does, and write it down."""
        merge = self.merge(layer)
        merged = None if merge is None else merge_into(retained, lost, merge, stored.padding)
        self.note(layer, stored, lost, retained, merged)

    def note(
        self,
        layer: int,
        stored: StoredLayer,
        lost: Segment,
        retained: Sequence[Segment] = (),
        merged: Merged | None = None,
    ) -> None:
        """Write an eviction down, if somebody keeps account: `lost.mass` is the score, and padding has position -1.

        merged: what became of the tokens, `[batch, head, n]`; its places count through all of `retained`.
        """
        if self.ledger is None or len(lost) == 0:
            return
        assert lost.mass is not None
        at = places([lost]).long()
        if stored.padding is not None:
            at = at.masked_fill(at < stored.padding[:, None, None], -1)
        entry = Entry(layer, stored.seen, at, lost.mass.clone())
        if merged is not None:
            into = places(retained).long().gather(2, merged.target.clamp(min=0)).masked_fill(merged.target < 0, -1)
            entry = replace(
                entry, target=into, similarity=merged.similarity, threshold=self.threshold[layer], merged=merged.merged
            )
        self.ledger.append(entry)


def chosen(
    scores: Float[Tensor, "batch head token"],
    padding: Int[Tensor, " batch"] | None,
    heavy: int,
    recent: int,
    sinks: int,
) -> tuple[Int[Tensor, "batch head kept"], Int[Tensor, "batch head dropped"]]:
    """(the `heavy` best tokens outside the newest `recent`, all others outside of them), each in the text's order."""
    candidates = scores[..., : scores.shape[-1] - recent].clone()
    place = torch.arange(candidates.shape[-1], device=scores.device)
    first = 0 if padding is None else padding[:, None, None]
    candidates.masked_fill_((place >= first) & (place < first + sinks), torch.inf)
    if padding is not None:
        candidates.masked_fill_(place < first, -torch.inf)
    order = candidates.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :heavy].sort(-1).values, order[..., heavy:].sort(-1).values
