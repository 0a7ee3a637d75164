"""What token policies share: a capacity, a score for every token, and taking tokens out of a live cache.

A method says how it scores tokens and how many recent ones it always keeps; `EvictionPlan` does the rest. Padding goes
first, sinks and recent tokens never go, of equal scores the earlier token stays.

A method that also acts at every step is a `StepPlan` beside this file's `EvictionPlan`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from interp_kernels import Merge, Merged
from jaxtyping import Float, Int

from interp.cache.segments import NOWHERE, Segment
from interp.errors import InterpError
from interp.interventions.base import CachePolicy, Entry, Plan, Prompt
from interp.interventions.policies._choosing import Choice, choose, least, worth
from interp.interventions.policies._merging import merge_into, places
from interp.seam.event import AttentionEvent

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer

Tensor = torch.Tensor


@dataclass(frozen=True)
class Eviction(CachePolicy):
    """Keep the `budget` best tokens of the prompt in every key/value head and drop the others.

    Args:
        budget: tokens that stay: a float is a share of the prompt's tokens, though never less than what always stays
            and one token; a whole number that many tokens, and a bound: another turn does not exceed it. In a padded
            batch each text keeps what it keeps alone.
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
        """Tokens that stay in each head of a layer, as `budget` says."""
        return tokens_of(self.budget, prompt.tokens)

    def recent_tokens(self, capacity: int) -> int:
        """How many of them are the newest ones."""
        return 0

    def always(self, capacity: int) -> int:
        """How many of them stay whatever they score."""
        return self.sinks + self.recent_tokens(capacity)

    def size(self, prompt: Prompt, layer: int) -> int:
        """Tokens that stay in each head of a layer. A share of a short text has no room for what always stays, and is
        raised to it; a whole number is not, and `check` sees to that."""
        capacity = self.capacity(prompt, layer)
        while not isinstance(self.budget, int) and capacity < (needed := max(self.always(capacity), self.sinks + 1)):
            capacity = needed
        return capacity

    @property
    def queries_needed(self) -> int | None:
        """How many of the prompt's newest queries the scores look at; None: all of them."""
        return None

    @abstractmethod
    def scores(self, layer: int, event: AttentionEvent) -> Float[Tensor, "batch head token"]:
        """How much each token of the prompt is worth keeping, by query head or key/value head."""

    def check(self, prompt: Prompt) -> None:
        for layer in prompt.layers:
            capacity = self.size(prompt, layer)
            fixed = self.always(capacity)
            if capacity < min(prompt.tokens, max(1, fixed)):
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
    """An `Eviction` at work on one sequence: the prompt is cut once, and again where a turn exceeds a whole number.

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
        self.goal: dict[int, int] = {}
        """How many tokens each layer that was cut, or keeps account, is to hold."""
        self.recent: dict[int, int | Int[Tensor, " batch"]] = {}
        """Newest tokens that are never evicted, of each such layer; by text where that differs."""
        self.unused: dict[int, Int[Tensor, " batch"]] = {}
        """Places that a text does not use, of layers in which another one keeps more tokens."""
        self.threshold: dict[int, Float[Tensor, "batch head"]] = {}
        """What similarity had to reach for the last merge, by layer, of methods that merge."""

    def observe(self, layer: int, event: AttentionEvent) -> None:
        self.scored[layer] = self._by_stored_head(self.policy.scores(layer, event), event.k.shape[1])

    def _by_stored_head(self, scores: Tensor, kv_heads: int) -> Tensor:
        """Scores of query heads summed over those that read the same stored head."""
        if self.policy.granularity == "query_head" or scores.shape[1] == kv_heads:
            return scores.float()
        return torch.unflatten(scores.float(), 1, (kv_heads, -1)).sum(2)

    def sizes(self, layer: int, stored: StoredLayer) -> list[int]:
        """How many tokens of each text a layer is to hold, by the text's own length."""
        return [self.policy.size(replace(self.prompt, tokens=n), layer) for n in lengths(stored)]

    def needed(self, layer: int, stored: StoredLayer) -> list[int]:
        """The same, where nothing grows into room to spare: no more than the text that keeps most has tokens."""
        sizes = self.sizes(layer, stored)
        most = max(min(size, n) for size, n in zip(sizes, lengths(stored), strict=True))
        return [min(size, most) for size in sizes]

    def compress(self, layer: int, stored: StoredLayer) -> None:
        scores, sizes = self.scored.pop(layer), self.needed(layer, stored)
        # one text may lose tokens where the longest, whose columns there are, keeps all of its own
        if max(sizes) < stored.seen or any(size < n for size, n in zip(sizes, lengths(stored), strict=True)):
            self.evict(layer, stored, scores, sizes, self.recents(sizes))

    def recents(self, sizes: Sequence[int]) -> list[int]:
        """How many of the tokens that each text keeps are the newest ones."""
        return [self.policy.recent_tokens(size) for size in sizes]

    def evict(
        self, layer: int, stored: StoredLayer, scores: Tensor, sizes: Sequence[int], recent: Sequence[int]
    ) -> None:
        """Keep as many tokens of each text as `sizes` says, `recent` of them the newest."""
        at = stored.places()
        at = at.repeat_interleave(scores.shape[1] // at.shape[1], 1)
        choice = choose(scores, at, stored.padding, sizes, recent, self.policy.sinks)
        lost = self._lost(stored, scores, choice)
        mass = scores.clone() if self.keeps_mass else None
        stored.keep(
            choice.kept, choice.recent, mass=mass, newest_query_only=self.newest_query_only, unused=choice.unused
        )
        self.remember(layer, stored, sizes, recent)
        self.lose(layer, stored, lost, *stored.segments)

    def remember(self, layer: int, stored: StoredLayer, sizes: Sequence[int], recent: Sequence[int]) -> None:
        """What a layer is to hold from now on."""
        self.goal[layer] = most = max(sizes)
        self.recent[layer] = recent[0] if len(set(recent)) == 1 else torch.tensor(list(recent), device=stored.device)
        self.unused.pop(layer, None)
        if min(sizes) < most:
            self.unused[layer] = torch.tensor([most - size for size in sizes], device=stored.device)

    def _lost(self, stored: StoredLayer, scores: Tensor, choice: Choice) -> Segment:
        """The tokens that go, with their scores; at `NOWHERE` where a text drops fewer than another."""
        lost = replace(stored.whole(scores.shape[1]), mass=scores).take(choice.dropped)
        return lost if choice.spared is None else replace(lost, positions=lost.at().masked_fill(choice.spared, NOWHERE))

    def another_turn(self, layer: int, stored: StoredLayer, event: Callable[[], AttentionEvent]) -> None:
        """Cut the layer again where it exceeds a whole number, by what the turn's queries say."""
        if not isinstance(self.policy.budget, int):
            return
        sizes = self.needed(layer, stored)
        if stored.kept <= max(sizes):
            return
        seen = event()
        scores = self._by_stored_head(self.policy.scores(layer, seen), seen.k.shape[1])
        if all(segment.channels is None and segment.value_channels is None for segment in stored.segments):
            self.evict(layer, stored, scores, sizes, self.recents(sizes))
        else:
            self._evict_one_by_one(layer, stored, scores, sizes)

    def _evict_one_by_one(self, layer: int, stored: StoredLayer, scores: Tensor, sizes: Sequence[int]) -> None:
        """The same where tokens lack channels, which have to stay where they are."""
        self.remember(layer, stored, sizes, recent := self.recents(sizes))
        by_position = scores.new_zeros(*scores.shape[:2], stored.seen + 1).scatter(
            2, stored.places().long() + 1, scores
        )
        for _ in range(stored.kept - max(sizes)):
            at = stored.places().long()
            newest = stored.seen - torch.tensor(list(recent), device=at.device)[:, None, None]
            found = by_position.gather(2, at + 1).masked_fill(at >= newest, torch.inf)
            place, score = least(worth(found, at, stored.padding, self.policy.sinks, self.unused.get(layer)), at)
            self.note(layer, stored, replace(stored.evict_one(place), mass=score[..., None]))

    def merge(self, layer: int) -> Merge | None:
        """What becomes of tokens that are evicted; None: nothing. Methods that merge override this."""
        return None

    def lose(self, layer: int, stored: StoredLayer, lost: Segment, *retained: Segment) -> None:
        """Tokens are evicted: merge them into retained ones, in place, if the method does, and write it down."""
        merge = self.merge(layer)
        merged = None if merge is None else merge_into(retained, lost, merge, stored.padding)
        self.note(layer, stored, lost, retained, merged)

    def reorder(self, rows: Tensor) -> None:
        self.scored = {layer: scores.index_select(0, rows.to(scores.device)) for layer, scores in self.scored.items()}
        self.unused = {layer: own.index_select(0, rows.to(own.device)) for layer, own in self.unused.items()}
        for layer, own in self.recent.items():
            self.recent[layer] = own if isinstance(own, int) else own.index_select(0, rows.to(own.device))

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
        at = at.masked_fill(at < (0 if stored.padding is None else stored.padding[:, None, None]), -1)
        entry = Entry(layer, stored.seen, at, lost.mass.clone())
        if merged is not None:
            into = places(retained).long().gather(2, merged.target.clamp(min=0)).masked_fill(merged.target < 0, -1)
            entry = replace(
                entry, target=into, similarity=merged.similarity, threshold=self.threshold[layer], merged=merged.merged
            )
        self.ledger.append(entry)


def lengths(stored: StoredLayer) -> list[int]:
    """Tokens of each text that a layer has seen, without its padding."""
    if stored.padding is None:
        return [stored.seen] * stored.segments[0].keys.shape[0]
    return [stored.seen - padding for padding in stored.padding.tolist()]


def chosen(
    scores: Float[Tensor, "batch head token"],
    padding: Int[Tensor, " batch"] | None,
    heavy: int,
    recent: int,
    sinks: int,
) -> tuple[Int[Tensor, "batch head kept"], Int[Tensor, "batch head dropped"]]:
    """(the `heavy` best tokens outside the newest `recent`, all others outside of them), each in the text's order."""
    at = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    batch = scores.shape[0]
    choice = choose(scores, at, padding, [heavy + recent] * batch, [recent] * batch, sinks)
    return choice.kept, choice.dropped
