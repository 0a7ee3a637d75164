"""Pattern edits of one layer at work in one call: factors by row and group of keys, what is seen of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int

from interp.interventions.edits._answers import stretching
from interp.interventions.edits._few_rows import FewRows, edited, fit
from interp.interventions.edits._members import Member, at_every_row
from interp.interventions.edits._rescoring import ScoredEvent
from interp.interventions.edits.base import PatternEdit

Tensor = torch.Tensor


def factors_of(
    member: Member[PatternEdit], masses: Float[Tensor, "batch head row group"]
) -> Float[Tensor, "batch head row group"]:
    """What an edit multiplies the groups by, given what rows pay to them; 1 where it has no say or nothing lies."""
    own = masses
    if member.of is not None:
        own = masses.new_zeros(*masses.shape[:-1], member.edit.group_count).index_add(-1, member.of, masses)
    factors = stretching(member.edit, "factors", member.edit.factors(own), *own.shape)
    if member.edit.keeps_sums:
        left = (factors * own).sum(-1, keepdim=True)
        nothing = left <= 0
        factors = (factors * (own.sum(-1, keepdim=True) / left.masked_fill(nothing, 1.0))).masked_fill(nothing, 0.0)
    may, paid = member.may_change(masses.shape[2]), own > 0
    factors = torch.where(paid if may is None else may & paid, factors, 1.0)
    if member.note is not None:
        member.note((factors.detach() != 1).any())
    return factors if member.of is None else factors.index_select(-1, member.of)


@dataclass(frozen=True)
class Reweighting:
    """What the pattern edits of a layer do to the attention of one call."""

    groups: Int[Tensor, "batch head_or_1 key"]
    count: int
    members: Sequence[Member[PatternEdit]]

    def factors(self, masses: Float[Tensor, "batch head row group"]) -> Float[Tensor, "batch head row group"]:
        """All factors together: every edit sees the masses that those before it left. Rows are the newest tokens."""
        factors = factors_of(self.members[0], masses)
        for member in self.members[1:]:
            factors = factors * factors_of(member, masses * factors)
        return factors

    def pattern(self, pattern: Float[Tensor, "batch head row key"]) -> Float[Tensor, "batch head row key"]:
        """A pattern in the open, edited."""
        wide = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
        masses = wide.new_zeros(*wide.shape[:-1], self.count).scatter_add(-1, at_every_row(self.groups, wide), wide)
        return (wide * self.by_key(self.factors(masses))).to(pattern.dtype)

    def one_hot(self, dtype: torch.dtype) -> Float[Tensor, "batch head_or_1 group key"]:
        """1 where a key is in a group, else 0."""
        every = torch.arange(self.count, dtype=self.groups.dtype, device=self.groups.device)
        return (self.groups.unsqueeze(2) == every.unsqueeze(1)).to(dtype)

    def by_key(self, factors: Float[Tensor, "batch head row group"]) -> Float[Tensor, "batch head row key"]:
        return factors.gather(-1, at_every_row(self.groups, factors))


@dataclass
class EditedEvent(ScoredEvent):
    """A layer's attention as edits of both stages leave it. `lse` is that of the scores, which pattern edits do not
    touch.

    Within a group of keys a pattern edit changes no proportions. So an edited row is a mixture of the groups' own
    softmaxes, and what is asked of it follows from theirs without an array of queries x keys.
    """

    reweighting: Reweighting = field(kw_only=True)

    @cached_property
    def factors(self) -> Float[Tensor, "batch head row group"]:
        return self.reweighting.factors(self._masses)

    @cached_property
    def _masses(self) -> Float[Tensor, "batch head row group"]:
        return super().apply(self.reweighting.one_hot(self.q.dtype).mT.expand(-1, self.q.shape[1], -1, -1))

    @cached_property
    def _few(self) -> FewRows | None:
        """Its rows in the open, where they are few and no logit is edited; None: kernels compute what is asked."""
        if self.meeting.members or not fit(self):
            return None
        return edited(self, self.reweighting.one_hot(torch.promote_types(self.q.dtype, torch.float32)), self.reweighting.factors)

    @cached_property
    def column_mass(self) -> Float[Tensor, "batch head key"]:
        if self._few is not None:
            return self._few.pattern.sum(2)
        return self.transpose_apply(self.q.new_ones(*self.q.shape[:3], 1))[..., 0]

    @cached_property
    def entropy(self) -> Float[Tensor, "batch head query"]:
        mass = self.factors * self._masses
        entropy: Tensor = (mass * self._within_groups("entropy") + torch.special.entr(mass)).sum(-1)
        return entropy

    @cached_property
    def square(self) -> Float[Tensor, "batch head query"]:
        mass = self.factors * self._masses
        return (mass.square() * self._within_groups("square")).sum(-1)

    def _within_groups(self, statistic: str) -> Float[Tensor, "batch head query group"]:
        """A statistic of each row's softmax over the keys of one group alone."""
        found = []
        for group in range(self.reweighting.count):
            alone = torch.where(self.reweighting.groups == group, 0.0, -torch.inf)[:, :, None]
            known = self.facts.get("bias")
            facts = {**self.facts, "bias": alone if known is None else known + alone}
            scored = self.become(ScoredEvent, facts=facts, sinks=None, meeting=self.meeting)
            found.append(getattr(scored._statistics(statistic), statistic))
        return torch.stack(found, -1)

    def apply(self, x: Float[Tensor, "batch head key r"]) -> Float[Tensor, "batch head query r"]:
        with torch.no_grad():
            return self.reweighted(x, self.reweighting.groups, lambda masses: self.factors, self.reweighting.count)

    def transpose_apply(self, y: Float[Tensor, "batch head query r"]) -> Float[Tensor, "batch head key r"]:
        """A'ᵀ y: of the product of Aᵀ with y times each group's factor, a key takes its own group's."""
        scaled = self.factors[..., None] * y[..., None, :].to(self.factors.dtype)
        by_group = super().transpose_apply(scaled.flatten(3))
        by_group = by_group.reshape(*by_group.shape[:3], self.reweighting.count, y.shape[-1])
        own = self.reweighting.groups.long()[..., None, None].expand(*by_group.shape[:3], 1, by_group.shape[-1])
        return by_group.gather(3, own)[..., 0, :]

    def gram_apply(self, x: Float[Tensor, "batch head key r"]) -> tuple[Tensor, Tensor]:
        applied = self.apply(x)
        return applied, self.transpose_apply(applied)

    def pattern(self) -> Float[Tensor, "batch head query key"]:
        return super().pattern() * self.reweighting.by_key(self.factors)

    def attend(self, own: Float[Tensor, "batch row head d"] | None = None) -> Float[Tensor, "batch row head d"]:
        if self._few is not None:
            return self.merged(self._few.attend(self), own, self._few.changed)
        changed = self.rescoring.changed if self.meeting.members else torch.zeros((), dtype=torch.bool)

        def decide(masses: Tensor) -> Tensor:
            nonlocal changed
            factors = self.reweighting.factors(masses)
            changed = changed.to(factors.device) | (factors.detach() != 1).any(-1)
            return factors

        z = self.reweighted(self.v, self.reweighting.groups, decide, self.reweighting.count)
        return self.merged(z, own, changed)

    def weights(self, own: Float[Tensor, "batch head row key"]) -> Float[Tensor, "batch head row key"]:
        return self.reweighting.pattern(super().weights(own))
