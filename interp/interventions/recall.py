"""Recall: evicted tokens live on as more weight and a mixed value of the retained token that looks most like them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from interp.errors import InterpError
from interp.event import AttentionEvent
from interp.interventions import _merging as merging
from interp.interventions._eviction import EvictionPlan
from interp.interventions.base import Plan, Prompt
from interp.interventions.h2o import H2O
from interp.segments import Segment

if TYPE_CHECKING:
    from interp.cache import StoredLayer

Tensor = torch.Tensor


@dataclass(frozen=True)
class Recall(H2O):
    name: ClassVar[str] = "recall"
    sinks: int = 4
    recent_share: float = 0.25
    mode: str = "mass"
    share: float = 1.0
    values: bool = True
    keys: bool = False
    count: bool = True
    similar: str = "key"
    damp: float = 1.0

    def begin(self, prompt: Prompt) -> Plan:
        return RecallPlan(self, prompt)


class RecallPlan(EvictionPlan):
    each_step = True
    keeps_mass = True
    policy: Recall

    def evict(self, layer, stored, scores, capacity, recent):
        stored.segments = [replace(s, log_count=torch.zeros(s.keys.shape[:3])) for s in stored.segments]
        super().evict(layer, stored, scores, capacity, recent)

    def lose(self, layer, stored, lost, *retained):
        p = self.policy
        keys = torch.cat([s.dense_keys(stored.d_head) for s in retained], 2)
        values = torch.cat([s.dense_values(stored.d_value) for s in retained], 2)
        mass = torch.cat([s.mass for s in retained], 2)
        at = torch.cat([s.at().expand(s.keys.shape[:3]) for s in retained], 2)
        hidden = at < p.sinks
        if p.similar == "key":
            sim, target = merging.nearest(lost.keys, keys, hidden)
        elif p.similar == "centred":
            m = torch.cat([lost.keys, keys], 2).mean(2, keepdim=True)
            sim, target = merging.nearest(lost.keys - m, keys - m, hidden)
        elif p.similar == "value":
            sim, target = merging.nearest(lost.values, values, hidden)
        elif p.similar == "place":
            d = (lost.at()[..., None] - at[:, :, None]).abs().masked_fill(hidden[:, :, None], 10**9)
            sim, target = d.min(-1)
            sim = -sim.float()
        gate = torch.ones_like(sim, dtype=torch.bool)
        if p.share < 1:
            gate = sim >= sim.quantile(1 - p.share, -1, keepdim=True)
        if p.mode == "mass":
            own, weight = mass.clamp_min(1e-6), lost.mass * p.damp
        else:
            own, weight = torch.ones_like(mass), torch.ones_like(lost.mass) * p.damp
        weight = weight.where(gate, 0.0)
        total = own.scatter_add(2, target, weight)

        def mix(x, y):
            index = target[..., None].expand(-1, -1, -1, x.shape[-1])
            return (own[..., None] * x).scatter_add(2, index, weight[..., None] * y) / total[..., None]

        lengths = [len(s) for s in retained]
        if p.values:
            for s, part in zip(retained, mix(values, lost.values).split(lengths, 2)):
                s.write_values(part)
        if p.keys:
            for s, part in zip(retained, mix(keys, lost.keys).split(lengths, 2)):
                s.write_keys(part)
        if p.count:
            for s, part in zip(retained, (total / own).log().split(lengths, 2)):
                s.log_count.add_(part)
        return at.gather(2, target).long(), sim, None, gate
