"""TOVA: at every step the token that the newest query attends to least goes (Oren et al. 2024, arXiv:2401.06104)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float

from interp.interventions.base import Plan, Prompt
from interp.interventions.policies._choosing import least, worth
from interp.interventions.policies._eviction import Eviction, EvictionPlan
from interp.interventions.policies._window import window_mass
from interp.seam.event import AttentionEvent

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer

Tensor = torch.Tensor


@dataclass(frozen=True)
class TOVA(Eviction):
    """Keep the `budget` tokens that the newest query attends to most, averaged over the layer's heads.

    The prompt is read in full and cut by its last query; from then on, whenever a layer holds more than `budget`
    tokens, the least attended one goes, and that may be the newest. With a whole number larger than the prompt a layer
    grows up to it first. Of equals the later goes.

    Args:
        per: "layer", one set of tokens for all heads of a layer, from their mean, as released; "kv_head", a set
            for each key/value head, from the mean over the query heads that read it (ours).

    Source: schwartz-lab-NLP/TOVA, `tova_cache.py`. Differs from it: kept keys stay in the cache at their true
    positions, and of several tokens that come at once (another turn) the last one's row chooses what goes.

    Examples:
        >>> with lens.apply(interp.TOVA(budget=0.5)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [20]
    """

    name: ClassVar[str] = "tova"
    per: Literal["layer", "kv_head"] = "layer"

    @property
    def queries_needed(self) -> int:
        return 1

    def scores(self, layer: int, event: AttentionEvent) -> Tensor:
        return self.mean_row(window_mass(event, 1), event.q.shape[1], event.k.shape[1], event.k.shape[1])

    def mean_row(self, row: Tensor, heads: int, kv_heads: int, stored: int) -> Float[Tensor, "batch stored token"]:
        """`row [batch, _, token]`, the newest query's attention summed over query heads, as the mean that chooses."""
        sets = 1 if self.per == "layer" else kv_heads
        mean: Tensor = torch.unflatten(row.float(), 1, (sets, -1)).sum(2) * (sets / heads)
        return mean.repeat_interleave(stored // sets, 1)

    def begin(self, prompt: Prompt) -> Plan:
        return TOVAPlan(self, prompt)


class TOVAPlan(EvictionPlan):
    each_step = True
    keeps_mass = True
    newest_query_only = True
    policy: TOVA

    def compress(self, layer: int, stored: StoredLayer) -> None:
        sizes = self.sizes(layer, stored)
        fitting = sizes if max(sizes) <= stored.seen else [stored.seen] * len(sizes)  # with room to spare account is
        self.evict(layer, stored, self.scored.pop(layer), fitting, [0] * len(sizes))  # kept too
        self.remember(layer, stored, sizes, [0] * len(sizes))

    def step(self, layer: int, stored: StoredLayer) -> None:
        cfg, sinks = self.prompt.cfg, self.policy.sinks
        for _ in range(stored.kept - self.goal[layer]):
            at, mass = stored.places(), stored.mass()
            row = self.policy.mean_row(mass, cfg.n_heads, stored.kv_heads, mass.shape[1])
            place, _ = least(worth(row, at, stored.padding, sinks, self.unused.get(layer)), at)
            lost = stored.evict_one(place)
            self.note(layer, stored, replace(lost, mass=row.gather(2, place[..., None])))
