"""What tests of `interp.explain` need: a policy whose every eviction is known, and short ways to ask about it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from interp.explaining import explain
from interp.explaining.case import Case
from interp.interventions.base import CachePolicy, Entry, Plan, Prompt
from interp.interventions.policies.think import ThinK
from tests.models import tokens

S, G = 40, 9
THINK = ThinK(ratio=0.5, window=8, recent=8)


@dataclass(frozen=True)
class Drop(CachePolicy):
    """Evicts every `every`-th token of the prompt, head h starting at h; at each step also the oldest one held.

    `late` waits for the first decoded token.

    With `merge` the value of an evicted token's right neighbour becomes the mean of both.
    """

    name: ClassVar[str] = "drop"
    stage: ClassVar[Literal["tokens", "channels"]] = "tokens"
    every: int = 4
    stepping: bool = False
    merge: bool = False
    late: bool = False

    def begin(self, prompt: Prompt) -> Plan:
        return DropPlan(self)


class DropPlan(Plan):
    def __init__(self, policy: Drop) -> None:
        self.policy = policy
        self.each_step = policy.stepping
        self.moment = "first_decode" if policy.late else "layer"

    def compress(self, layer, stored):
        whole = stored.whole()
        heads, n = whole.keys.shape[1], len(whole)
        place = torch.arange(n)
        goes = torch.stack(
            [(place % self.policy.every == h % self.policy.every) & (place < S - 4) for h in range(heads)]
        )[None]
        count = int(goes[0].sum(-1).min())
        gone = torch.stack([g.nonzero()[:count, 0] for g in goes[0]])[None]
        stays = torch.stack([torch.tensor([i for i in range(n) if i not in row.tolist()]) for row in gone[0]])[None]
        self._note(layer, stored, gone)
        stored.keep(stays)
        if self.policy.merge:
            values = whole.values.clone()
            for h in range(heads):
                for i in gone[0, h].tolist():
                    values[0, h, i + 1] = (whole.values[0, h, i] + whole.values[0, h, i + 1]) / 2
            stored.segments[0].write_values(dataclasses.replace(whole, values=values).take(stays).values)

    def step(self, layer, stored):
        oldest = stored.places().amin(-1)
        place = stored.places().argmin(-1)
        stored.evict_one(place)
        self._note(layer, stored, oldest[..., None].long())

    def _note(self, layer, stored, at):
        if self.ledger is not None:
            merged = {}
            if self.policy.merge:
                like = torch.ones(at.shape)
                merged = {
                    "target": at + 1,
                    "similarity": like / 2,
                    "threshold": torch.tensor([[0.4, 0.3]]).repeat(1, at.shape[1] // 2),
                    "merged": like > 0,
                }
            self.ledger.append(Entry(layer, stored.seen, at, at.float() + 0.5 + layer, **merged))


def case_of(lens, policy, prompt=None, steps=G) -> Case:
    return Case.of(lens, policy, tokens(1, S) if prompt is None else prompt, tokens(1, steps + 1, seed=5))


def ask(lens, policy, question, steps=G):
    (answer,) = explain(lens, policy, tokens(1, S), tokens(1, steps + 1, seed=5), question).values()
    return answer
