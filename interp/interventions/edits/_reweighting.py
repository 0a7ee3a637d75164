"""Attention edits of one layer at work in one call: groups of keys, factors by row and group, what is seen of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from interp_kernels import attention_apply, group_reweighted_attention
from jaxtyping import Bool, Float, Int

from interp.interventions.edits.base import AttentionEdit
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class Member:
    """One edit among those that meet in a layer."""

    edit: AttentionEdit
    of: Int[Tensor, " group"]
    """Its own group of the keys in each group that the edits of the layer make together."""
    rows: Bool[Tensor, "batch token"]
    """The rows that it may change, of all tokens so far."""
    heads: Bool[Tensor, " head"] | None
    note: Callable[[Tensor], None]
    """Told whether it changed anything, as a bool on the device."""

    def factors(self, masses: Float[Tensor, "batch head row group"]) -> Float[Tensor, "batch head row group"]:
        """What it multiplies the groups by, given what rows pay to them; 1 where it has no say or nothing lies."""
        own = masses.new_zeros(*masses.shape[:-1], self.edit.group_count).index_add(-1, self.of, masses)
        factors = self.edit.factors(own).expand_as(own)
        if self.edit.keeps_sums:
            left = (factors * own).sum(-1, keepdim=True)
            factors = factors * torch.where(left > 0, own.sum(-1, keepdim=True) / torch.where(left > 0, left, 1.0), 0.0)
        factors = torch.where(self._may_change(masses) & (own > 0), factors, 1.0)
        self.note((factors.detach() != 1).any())
        return factors.index_select(-1, self.of)

    def _may_change(self, masses: Tensor) -> Bool[Tensor, "batch head row 1"]:
        rows = self.rows[:, None, -masses.shape[2] :, None]
        return rows if self.heads is None else rows & self.heads[:, None, None]


@dataclass(frozen=True)
class Reweighting:
    """What the edits of a layer do to the attention of one call."""

    groups: Int[Tensor, "batch head_or_1 key"]
    count: int
    members: Sequence[Member]

    def factors(self, masses: Float[Tensor, "batch head row group"]) -> Float[Tensor, "batch head row group"]:
        """All factors together: every edit sees the masses that those before it left. Rows are the newest tokens."""
        factors = torch.ones_like(masses)
        for member in self.members:
            factors = factors * member.factors(masses * factors)
        return factors

    def attend(
        self, event: AttentionEvent, own: Float[Tensor, "batch row head d"] | None = None
    ) -> Float[Tensor, "batch row head d"]:
        """z, of the rows that are not edited `own`: what the model computes itself, to the last bit."""
        changed = torch.zeros(())

        def decide(masses: Tensor) -> Tensor:
            nonlocal changed
            factors = self.factors(masses)
            changed = (factors.detach() != 1).any(-1)
            return factors

        z = group_reweighted_attention(
            event.q, event.k, event.v, self.groups, decide,
            renormalise=False, group_count=self.count, **event.maths,
        ).z  # fmt: skip
        z = z.transpose(1, 2).to(event.q.dtype).contiguous()
        return z if own is None else torch.where(changed.transpose(1, 2)[..., None], z, own)

    def pattern(self, pattern: Float[Tensor, "batch head row key"]) -> Float[Tensor, "batch head row key"]:
        """A pattern in the open, edited."""
        wide = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
        masses = wide.new_zeros(*wide.shape[:-1], self.count).scatter_add(-1, self._at_every_row(wide), wide)
        return (wide * self.by_key(self.factors(masses))).to(pattern.dtype)

    def by_key(self, factors: Float[Tensor, "batch head row group"]) -> Float[Tensor, "batch head row key"]:
        return factors.gather(-1, self._at_every_row(factors))

    def _at_every_row(self, like: Float[Tensor, "batch head row _"]) -> Int[Tensor, "batch head row key"]:
        """The groups of the keys, repeated for the heads and rows of another array."""
        return self.groups.long()[:, :, None].expand(*like.shape[:3], -1)


@dataclass
class EditedEvent(AttentionEvent):
    """A layer's attention as edits leave it. `lse` stays that of the scores, which edits do not touch.

    Within a group of keys an edit changes no proportions. So an edited row is a mixture of the groups' own softmaxes,
    and what is asked of it follows from theirs without an array of queries x keys.
    """

    reweighting: Reweighting = field(kw_only=True)

    @cached_property
    def factors(self) -> Float[Tensor, "batch head row group"]:
        return self.reweighting.factors(self._masses)

    @cached_property
    def _masses(self) -> Float[Tensor, "batch head row group"]:
        groups, count = self.reweighting.groups.long(), self.reweighting.count
        members = torch.nn.functional.one_hot(groups, count).to(self.q.dtype)
        return super().apply(members.expand(-1, self.q.shape[1], -1, -1))

    @cached_property
    def column_mass(self) -> Float[Tensor, "batch head key"]:
        return self.transpose_apply(self.q.new_ones(*self.q.shape[:3], 1))[..., 0]

    @cached_property
    def entropy(self) -> Float[Tensor, "batch head query"]:
        mass = self.factors * self._masses
        return (mass * self._within_groups("entropy") + torch.special.entr(mass)).sum(-1)

    @cached_property
    def square(self) -> Float[Tensor, "batch head query"]:
        mass = self.factors * self._masses
        return (mass.square() * self._within_groups("square")).sum(-1)

    def _within_groups(self, statistic: str) -> Float[Tensor, "batch head query group"]:
        """A statistic of each row's softmax over the keys of one group alone."""
        found = []
        for group in range(self.reweighting.count):
            alone = torch.where(self.reweighting.groups == group, 0.0, -torch.inf)[:, :, None]
            maths = {**self.maths, "sinks": None, "bias": self.facts.get("bias", 0.0) + alone}
            told = attention_apply(self.q, self.k, statistics=(statistic,), **maths)
            found.append(getattr(told, statistic))
        return torch.stack(found, -1)

    def apply(self, x: Float[Tensor, "batch head key r"]) -> Float[Tensor, "batch head query r"]:
        with torch.no_grad():
            return group_reweighted_attention(
                self.q, self.k, x, self.reweighting.groups, self.factors, renormalise=False, **self.maths
            ).z

    def transpose_apply(self, y: Float[Tensor, "batch head query r"]) -> Float[Tensor, "batch head key r"]:
        """A'ᵀ y: of the product of Aᵀ with y times each group's factor, a key takes its own group's."""
        scaled = self.factors[..., None] * y[..., None, :].to(self.factors.dtype)
        by_group = super().transpose_apply(scaled.flatten(3)).unflatten(-1, (self.reweighting.count, -1))
        own = self.reweighting.groups.long()[..., None, None].expand(*by_group.shape[:3], 1, by_group.shape[-1])
        return by_group.gather(3, own)[..., 0, :]

    def gram_apply(self, x: Float[Tensor, "batch head key r"]) -> tuple[Tensor, Tensor]:
        applied = self.apply(x)
        return applied, self.transpose_apply(applied)

    def pattern(self) -> Float[Tensor, "batch head query key"]:
        return super().pattern() * self.reweighting.by_key(self.factors)


def edited(event: AttentionEvent, reweighting: Reweighting) -> EditedEvent:
    fields: dict[str, Any] = {name: getattr(event, name) for name in AttentionEvent.__dataclass_fields__}
    return EditedEvent(**fields, reweighting=reweighting)
