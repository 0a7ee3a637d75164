"""A token policy that also acts at every step and keeps its cache at one size.

The token that leaves the recent window and the old tokens compete by the attention that they have received, and the
loser's place is overwritten, so a step moves one token and not the cache. Where tokens are dense, one kernel does that
and the attention before it (`attend_and_step`). What any plan that acts at steps may rely on is said in
`interp.interventions.base.Plan`; this one adds the slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from interp_kernels import Merged, decode_step

from interp.cache.segments import Segment
from interp.interventions.policies._eviction import EvictionPlan

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer

Tensor = torch.Tensor


class StepPlan(EvictionPlan):
    """An `Eviction` that lets one token of each head go for each that comes, the least attended outside the window."""

    each_step = True
    keeps_mass = True

    def move_to_slots(self, layer: int, stored: StoredLayer) -> None:
        if layer in self.recent and len(stored.segments[-1]) == stored.newest_at_compression:
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
            self.replace_one(layer, stored)
        self.move_to_slots(layer, stored)

    def replace_one(self, layer: int, stored: StoredLayer) -> None:
        """Let the token that leaves the tail and the old ones compete, and drop the least attended in each head."""
        old, tail = stored.segments[0], stored.segments[-1]
        aged = tail.part(slice(0, 1))
        # the recent window may reach back beyond the tail, into the old tokens, where channels are pruned too
        newest = stored.seen - max(stored.newest_at_compression, self.recent[layer])
        slot, least = self._least(old, stored, newest)
        _, aged_worth = self._least(aged, stored, newest)
        before_tail = stored.kept - len(tail)
        place = slot.where(least < aged_worth, before_tail)
        if len(old) <= self.policy.sinks:
            # a dense tail longer than the budget without its sinks reaches back into them: where both the old tokens
            # and the aged one are sinks, the tail's least attended token makes room for the one that would leave it
            stuck = least.isposinf() & aged_worth.isposinf()
            in_tail, _ = self._least(tail.part(slice(1, len(tail))), stored, stored.seen - self.recent[layer])
            place = (before_tail + 1 + in_tail).where(stuck, place)
        victim = stored.evict_one(place)
        self.lose(layer, stored, victim, *stored.segments)

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
