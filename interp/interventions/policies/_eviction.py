"""What token policies share: a capacity, a score for every token, and taking tokens out of a live cache.

A method says how it scores tokens and how many recent ones it always keeps; `EvictionPlan` does the rest. Padding goes
first, sinks and recent tokens never go, of equal scores the earlier token stays.

A method that also acts at every step keeps its cache at one size: the token that leaves the recent window and the old
tokens compete, and the loser's place is overwritten, so a step moves one token and not the cache. Where tokens are
dense, one kernel does that and the attention before it (`attend_and_step`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from interp_kernels import Merge, Merged, decode_step
from jaxtyping import Bool, Float, Int

from interp.cache.segments import Segment, joined
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
    """An `Eviction` at work on one sequence."""

    keeps_mass: ClassVar[bool] = False
    """Whether stored tokens go on collecting the attention that they receive, starting from their score."""

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
        return scores.float().unflatten(1, (kv_heads, -1)).sum(2)

    def compress(self, layer: int, stored: StoredLayer) -> None:
        scores = self.scored.pop(layer)
        capacity = self.policy.capacity(self.prompt, layer)
        if capacity < stored.seen:
            self.evict(layer, stored, scores, capacity, self.policy.recent_tokens(capacity))

    def evict(self, layer: int, stored: StoredLayer, scores: Tensor, capacity: int, recent: int) -> None:
        """Keep `capacity` tokens of a layer, `recent` of them the newest."""
        whole = joined(stored.segments)
        if whole.keys.shape[1] != scores.shape[1]:
            whole = whole.per_head(scores.shape[1])
        if self.keeps_mass:
            whole = replace(whole, mass=scores.clone())
        kept, dropped = chosen(scores, stored.padding, capacity - recent, recent, self.policy.sinks)
        old, tail = whole.take(kept), whole.part(slice(len(whole) - recent, len(whole)))
        lost = replace(whole, mass=scores).take(dropped)
        self.lose(layer, stored, lost, old, tail)
        stored.segments = [old, tail] if len(old) else [tail]
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
        if self.ledger is None:
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

    def move_to_slots(self, layer: int, stored: StoredLayer) -> None:
        if layer in self.recent and len(stored.segments[-1]) == stored.newest_at_compression:
            stored.move_to_slots()

    def attend_and_step(self, layer: int, stored: StoredLayer, q: Tensor, **maths: Any) -> Tensor:
        """One kernel: keep account of attention, then what `replace_one` does, though on slots in no order."""
        slots = stored.slots
        assert slots is not None
        z, lost, merged = decode_step(
            q,
            slots.keys,
            slots.values,
            slots.mass,
            slots.positions,
            keep_oldest=self.policy.sinks,
            keep_newest=self.recent[layer],
            padding=stored.padding,
            merge=self.merge(layer),
            **maths,
        )
        stored.free_slot()
        victim = Segment(lost.key, lost.value, lost.position[..., None], mass=lost.mass[..., None])
        merged = None if merged is None else Merged(*(x[..., None] for x in merged))
        self.note(layer, stored, victim, [slots.whole], merged)
        return z

    def step(self, layer: int, stored: StoredLayer) -> None:
        if layer not in self.recent:  # it had room for the whole prompt, and is left to grow
            return
        stored.leave_slots()
        for _ in range(len(stored.segments[-1]) - stored.newest_at_compression):
            aged, stored.segments[-1] = _first_off(stored.segments[-1])
            self.replace_one(layer, stored, aged)
        self.move_to_slots(layer, stored)

    def replace_one(self, layer: int, stored: StoredLayer, aged: Segment) -> None:
        """Let the token that left the tail and the old ones compete, and drop the least attended in each head."""
        old = stored.segments[0]
        # the recent window may reach back beyond the tail, into the old tokens, where channels are pruned too
        newest = stored.seen - max(stored.newest_at_compression, self.recent[layer])
        slot, least = self._least(old, stored, newest)
        _, aged_worth = self._least(aged, stored, newest)
        goes_in = least < aged_worth
        victim = _either(goes_in, old.take(slot[..., None]), aged)
        old.overwrite(slot, aged, goes_in)
        if len(old) <= self.policy.sinks:
            victim = self._keep_sink(layer, stored, aged, least.isposinf() & aged_worth.isposinf(), victim)
        self.lose(layer, stored, victim, *stored.segments)

    def _keep_sink(self, layer: int, stored: StoredLayer, aged: Segment, stuck: Tensor, victim: Segment) -> Segment:
        """The token that is lost where, in heads that are `stuck`, both the old tokens and the aged one are sinks.

        A dense tail longer than the budget without its sinks reaches back into them; its least attended token makes
        room for the sink that would leave it.
        """
        tail = stored.segments[-1]
        slot, _ = self._least(tail, stored, stored.seen - self.recent[layer])
        victim = _either(stuck, tail.take(slot[..., None]), victim)
        tail.overwrite(slot, aged, stuck)
        return victim

    def _least(self, segment: Segment, stored: StoredLayer, newest: int) -> tuple[Tensor, Tensor]:
        """(place, attention) `[batch, head]` of the token that goes first: padding, then the least attended, of equals
        the later. Sinks and tokens from `newest` on count as infinite."""
        assert segment.mass is not None
        at = segment.at().expand(segment.mass.shape)
        first = 0 if stored.padding is None else stored.padding[:, None, None]
        stays = ((at >= first) & (at < first + self.policy.sinks)) | (at >= newest)
        worth = segment.mass.masked_fill(stays, torch.inf).masked_fill(at < first, -torch.inf)
        least = worth.amin(-1)
        return at.masked_fill(worth > least[..., None], -1).argmax(-1), least


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


def _first_off(segment: Segment) -> tuple[Segment, Segment]:
    """(the oldest token, the others)."""
    return segment.part(slice(0, 1)), segment.part(slice(1, len(segment)))


def _either(where: Bool[Tensor, "batch head"], a: Segment, b: Segment) -> Segment:
    """The one token of `a` where `where` is True, else that of `b`; with all channels of `b`, zeros where `a` lacks
    them."""
    d_head, d_value = b.keys.shape[-1], b.values.shape[-1]
    pick = lambda x, y: torch.where(where.view(*where.shape, *[1] * (y.ndim - 2)), x, y)  # noqa: E731
    shape = (*where.shape, 1)
    return Segment(
        pick(a.dense_keys(d_head), b.keys),
        pick(a.dense_values(d_value), b.values),
        pick(a.at().expand(shape), b.at().expand(shape)),
        mass=None if a.mass is None or b.mass is None else pick(a.mass, b.mass),
        log_count=None if a.log_count is None or b.log_count is None else pick(a.log_count, b.log_count),
    )
