"""A token policy that also acts at every step and keeps its cache at one size.

The token that leaves the recent window and the old tokens compete by the attention that they have received, and the
loser's place is overwritten, so a step moves one token and not the cache. Where tokens are dense, one kernel does that
and the attention before it (`attend_and_step`). What any plan that acts at steps may rely on is said in
`interp.interventions.base.Plan`; this one adds the slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from interp_kernels import Merged, decode_step

from interp.cache.segments import Segment
from interp.interventions.policies._choosing import least, worth
from interp.interventions.policies._eviction import EvictionPlan

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer

Tensor = torch.Tensor


class StepPlan(EvictionPlan):
    """An `Eviction` that lets one token of each head go for each that comes, the least attended outside the window.

    A layer with room for more than the prompt keeps account from the prompt on, and grows up to what it may hold.
    """

    each_step = True
    keeps_mass = True

    def compress(self, layer: int, stored: StoredLayer) -> None:
        scores, sizes = self.scored.pop(layer), self.sizes(layer, stored)
        if self.policy.budget != 1.0 or isinstance(self.policy.budget, int):  # all of the prompt: what follows it too
            self.evict_or_grow(layer, stored, scores, sizes, self.recents(sizes))

    def evict_or_grow(
        self, layer: int, stored: StoredLayer, scores: Tensor, sizes: Sequence[int], recent: Sequence[int]
    ) -> None:
        """Bring a layer to its size, or let it grow until it has it."""
        if max(sizes) < stored.seen:
            self.evict(layer, stored, scores, sizes, recent)
            return
        self.evict(layer, stored, scores, [stored.seen] * len(sizes), [0] * len(sizes))
        self.remember(layer, stored, sizes, recent)

    def move_to_slots(self, layer: int, stored: StoredLayer) -> None:
        # in slots whatever is hidden goes first, so no place can be left unused
        if stored.kept == self.goal.get(layer) and layer not in self.unused:
            stored.move_to_slots()

    def attend_and_step(self, layer: int, stored: StoredLayer, q: Tensor, **maths: Any) -> Tensor:
        """One kernel: keep account of attention, then what `replace_one` does, though on slots in no order."""
        slots = stored.slots
        assert slots is not None
        if stored.newest_query_only:
            slots.mass.zero_()  # the kernel adds to it
        z, lost, merged = decode_step(
            q,
            slots.keys,
            slots.values,
            slots.mass,
            slots.positions,
            keep_oldest=self.policy.sinks,
            keep_newest=int(self.recent[layer]),
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
        if layer not in self.recent:  # it is left to grow
            return
        goal = self.goal.get(layer, self.policy.size(self.prompt, layer))
        if stored.kept > goal:
            stored.leave_slots()
        while stored.kept > goal:
            self.replace_one(layer, stored, stored.kept - goal)
        self.move_to_slots(layer, stored)

    def replace_one(self, layer: int, stored: StoredLayer, excess: int) -> None:
        """Drop the least attended token of each head: an old one, whose place the one that leaves the tail takes, or
        that one itself. `excess` tokens are to go, one after the other, as if they had come so."""
        at, mass, tail = stored.places(), stored.mass(), len(stored.segments[-1])
        recent = self.recent[layer]
        recent = recent if isinstance(recent, int) else recent[:, None, None]
        value = worth(mass, at, stored.padding, self.policy.sinks, self.unused.get(layer))
        outside = value.masked_fill(at >= stored.seen - recent, torch.inf)
        # the recent window may reach back beyond the tail, into the old tokens, where channels are pruned too
        dense = outside.masked_fill(at >= stored.seen - stored.newest_at_compression, torch.inf)
        leaving = max(1, tail - stored.newest_at_compression - excess + 1)
        dense[..., stored.kept - tail + leaving :] = torch.inf
        place, smallest = least(dense, at)
        if bool((stuck := smallest.isposinf()).any()):
            # a dense tail longer than the budget without its sinks reaches back into them: where nothing else may go,
            # the tail's least attended token makes room for the one that would leave it
            place = least(outside, at)[0].where(stuck, place)
        victim = stored.evict_one(place)
        self.lose(layer, stored, victim, *stored.segments)
