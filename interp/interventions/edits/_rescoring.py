"""Logit edits of one layer at work in one call: what becomes of its logits, and what is seen of it.

All logit edits of a layer come to one map for each row and group of keys, logit -> scale * logit + bias, because such
maps in a row are such a map. It reaches the kernels through the queries and a bias by key where it can:

    one scale for all keys of a row      belongs to the row's query; under a softcap one scale for all rows belongs to
                                         the softcap
    one bias for all rows                is a bias by key, which the kernels know
    biases that differ by row            are a few more channels: the row's biases in its query, the key's group in its
                                         key

What is left (scales that differ by key, as where logits are set, and a softcap with scales or biases that differ by
row) is computed in the open, see `_open.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Self

import torch
from interp_kernels import Attended, attention_apply, group_reweighted_attention
from jaxtyping import Bool, Float, Int

from interp.interventions.edits._answers import stretching
from interp.interventions.edits._members import Meeting, Member, at_every_row
from interp.interventions.edits._open import OpenEvent, Rule, rescored
from interp.interventions.edits.base import LogitEdit, Values
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class Rescoring:
    """What becomes of the logits of one call."""

    scale: Float[Tensor, "batch head row group"]
    bias: Float[Tensor, "batch head row group"]
    sink_scale: Float[Tensor, "batch head row 1"]
    changed: Bool[Tensor, "batch head row"]
    """Rows whose attention is another for it."""


def rescoring(
    meeting: Meeting[LogitEdit],
    q: Float[Tensor, "batch head row d_head"],
    seen: Bool[Tensor, "batch head_or_1 row group"],
    sinks: bool,
) -> Rescoring:
    """What all logit edits of a layer do together. Rows are the newest tokens.

    seen: which groups of keys a row sees anything of. sinks: whether a learned sink takes part in the softmax.
    """
    like = torch.zeros((), dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    shape = (*q.shape[:3], meeting.count)
    scale, bias = like.new_ones(shape), like.new_zeros(shape)
    sink_scale = like.new_ones(*q.shape[:3], 1)
    for member in meeting.members:
        change, may = member.edit.change(member.positions[:, -q.shape[2] :]), member.may_change(q.shape[2])
        said = partial(_by_group, member=member, like=like, rows=q.shape[:3])
        factor, summand = said("scale", change.scale), said("bias", change.bias)
        sink_factor = torch.as_tensor(change.sink_scale).to(like)
        if may is not None:
            factor, summand = torch.where(may, factor, 1.0), torch.where(may, summand, 0.0)
            sink_factor = torch.where(may, sink_factor, 1.0)
        if member.note is not None:
            member.note(_matters(factor.expand(shape), summand.expand(shape), seen, sinks).any())
        scale, bias = scale * factor, bias * factor + summand
        sink_scale = sink_scale * sink_factor
    return Rescoring(scale, bias, sink_scale, _matters(scale, bias, seen, sinks))


def _by_group(what: str, values: Values, member: Member[LogitEdit], like: Tensor, rows: Sequence[int]) -> Tensor:
    """What an edit says of its groups, for the groups that all edits make together."""
    own = stretching(member.edit, what, torch.as_tensor(values).to(like), *rows, member.edit.group_count)
    own = own.expand(*own.shape[:-1], member.edit.group_count)
    return own if member.of is None else own.index_select(-1, member.of)


def _matters(scale: Tensor, bias: Tensor, seen: Tensor, sinks: bool) -> Bool[Tensor, "batch head row"]:
    """Whether a row's softmax is another for it: a bias that all it sees have in common is none, but beside a sink."""
    scaled = ((scale != 1) & seen).any(-1)
    if sinks:
        return scaled | ((bias != 0) & seen).any(-1)
    most = torch.where(seen, bias, -torch.inf).amax(-1)
    return scaled | (most > torch.where(seen, bias, torch.inf).amin(-1))


def in_the_open(
    meeting: Meeting[LogitEdit],
    q: Tensor,
    scores: Float[Tensor, "batch head row key"],
    mask: Tensor,
    sinks: Float[Tensor, " head"] | None,
) -> tuple[Float[Tensor, "batch head row key"], Tensor | None]:
    """Scores that are all there, edited and masked, and the learned sinks' logits, by row where edits scale them.

    mask: added to the scores; hidden cells are at the lowest number of its dtype.
    """
    if not meeting.members:
        return scores + mask, sinks
    visible = mask > torch.finfo(mask.dtype).min / 2
    visible = visible & visible.new_ones(len(scores), 1, *scores.shape[2:])
    members = torch.nn.functional.one_hot(at_every_row(meeting.groups, scores)[:, :, 0], meeting.count)
    total = rescoring(meeting, q, (visible.float() @ members.float()) > 0, sinks is not None)
    scores = rescored(scores, meeting.groups, total.scale, total.bias).to(scores.dtype) + mask
    return scores, None if sinks is None else total.sink_scale[..., 0] * sinks.to(total.sink_scale)[:, None]


@dataclass
class ScoredEvent(AttentionEvent):
    """A layer's attention as logit edits leave it, perhaps none: scores, pattern and all sums are those of the edited
    logits."""

    meeting: Meeting[LogitEdit] = field(kw_only=True)

    def newest(self, rows: int) -> Self:
        """The attention of the newest rows alone."""
        kept = slice(self.q.shape[2] - rows, self.q.shape[2])
        return replace(self, q=self.q[:, :, kept], facts=self.facts_of(kept))

    @property
    def unedited(self) -> AttentionEvent:
        return self.become(AttentionEvent)

    @cached_property
    def rescoring(self) -> Rescoring:
        return rescoring(self.meeting, self.q, self._seen, self.sinks is not None)

    @cached_property
    def _seen(self) -> Bool[Tensor, "batch head_or_1 row group"]:
        """Which groups of keys a row sees anything of: what it would read if it attended to all keys alike."""
        batch, heads, queries, _ = self.q.shape
        members = torch.nn.functional.one_hot(self.meeting.groups.long(), self.meeting.count).float()
        given = [fact for name in ("mask", "bias") if (fact := self.facts.get(name)) is not None]
        if all(fact.shape[1] == 1 for fact in [members, *given]):
            heads = 1
        q, k = members.new_zeros(batch, heads, queries, 1), members.new_zeros(*members.shape[:3], 1)
        z = attention_apply(q, k, members, scale=1.0, **self.facts).z
        assert z is not None
        return z > 0

    @cached_property
    def _shift(self) -> Float[Tensor, "batch head query 1"] | None:
        """By how much scaling the learned sink's logit raises it. All real keys are lowered instead, which is the same
        to a softmax, so that the sink stays one number a head."""
        if self.sinks is None:
            return None
        return (self.rescoring.sink_scale - 1) * self.sinks.to(self.rescoring.bias)[:, None, None]

    @cached_property
    def _opened(self) -> OpenEvent:
        scale, bias = self.rescoring.scale, self.rescoring.bias
        bias = bias if self._shift is None else bias - self._shift
        return self.become(OpenEvent, groups=self.meeting.groups, logit_scale=scale, logit_bias=bias)

    @cached_property
    def _as_if(self) -> AttentionEvent:
        """Queries and keys whose plain attention is the edited one, or the edited logits in the open."""
        if not self.meeting.members:
            return self.unedited
        scale, bias = self._opened.logit_scale, self._opened.logit_bias
        checks = [
            (scale != scale[..., :1]).any(),
            (scale != scale[:1, :1, :1, :1]).any(),
            (scale != 1).any(),
            (bias != 0).any(),
            (bias != bias[:, :, :1]).any(),
        ]
        by_key, by_row, scaled, biased, bias_by_row = torch.stack(checks).tolist()  # a GPU is waited for once
        as_channels = bias_by_row or (bias.requires_grad and torch.is_grad_enabled())  # a bias by key has no gradient
        if by_key or (self.softcap is not None and (by_row or (biased and as_channels))):
            return self._opened
        told: dict[str, Any] = {}
        if scaled and self.softcap is not None:
            factor = float(scale.flatten()[0])
            told |= {"softcap": self.softcap * factor, "scale": self.scale * factor}
        elif scaled:
            told["q"] = self.q.to(scale.dtype) * scale[..., :1]
        if biased and as_channels:
            told |= self._with_channels(told.get("q", self.q), bias)
        elif biased:
            by_key_bias = bias[:, :, :1].gather(-1, at_every_row(self.meeting.groups, bias[:, :, :1]))
            known = self.facts.get("bias")
            told["facts"] = {**self.facts, "bias": by_key_bias if known is None else by_key_bias + known}
        return self.become(AttentionEvent, **told)

    def _with_channels(self, q: Tensor, bias: Float[Tensor, "batch head query group"]) -> dict[str, Tensor]:
        """Queries and keys whose products hold the bias besides."""
        members = torch.nn.functional.one_hot(self.meeting.groups.long(), self.meeting.count).to(bias.dtype)
        members = members.expand(-1, self.k.shape[1], -1, -1)
        wide = torch.cat([q.to(bias.dtype), bias / self.scale], -1)
        return {"q": wide, "k": torch.cat([self.k.to(bias.dtype), members], -1)}

    def _statistics(self, *asked: str) -> Attended:
        told = self._as_if._statistics(*asked)
        return told if self._lowered is None else told._replace(lse=told.lse + self._lowered[..., 0])

    @property
    def _lowered(self) -> Tensor | None:
        return self._shift if self.meeting.members else None

    @property
    def sink_logits(self) -> Tensor | None:
        shift, sinks = self._lowered, super().sink_logits
        return sinks if shift is None or sinks is None else sinks + shift[..., 0]

    def apply(self, x: Float[Tensor, "batch head key r"]) -> Float[Tensor, "batch head query r"]:
        return self._as_if.apply(x)

    def transpose_apply(self, y: Float[Tensor, "batch head query r"]) -> Float[Tensor, "batch head key r"]:
        return self._as_if.transpose_apply(y)

    def gram_apply(self, x: Float[Tensor, "batch head key r"]) -> tuple[Tensor, Tensor]:
        return self._as_if.gram_apply(x)

    def pattern(self) -> Float[Tensor, "batch head query key"]:
        return self._as_if.pattern()

    def reweighted(
        self, x: Tensor, groups: Int[Tensor, "batch head_or_1 key"], rule: Rule, count: int
    ) -> Float[Tensor, "batch head query r"]:
        """A' x of a pattern whose cells are multiplied as `rule` says of row and group; with gradients."""
        as_if = self._as_if
        if isinstance(as_if, OpenEvent):
            return as_if.reweighted(x, groups, rule, count)
        return group_reweighted_attention(
            as_if.q, as_if.k, x, groups, rule, renormalise=False, group_count=count, **as_if.maths
        ).z

    def attend(self, own: Float[Tensor, "batch row head d"] | None = None) -> Float[Tensor, "batch row head d"]:
        """z, of the rows that are not edited `own`: what the model computes itself, to the last bit."""
        if torch.is_grad_enabled():
            groups = torch.zeros(len(self.q), 1, self.k.shape[2], dtype=torch.long, device=self.q.device)
            z = self.reweighted(self.v, groups, torch.ones_like, 1)
        else:
            z = self.apply(self.v)
        return self.merged(z, own, self.rescoring.changed)

    def merged(self, z: Tensor, own: Tensor | None, changed: Bool[Tensor, "batch head row"]) -> Tensor:
        """z `[batch, head, row, d]` as a model returns it, `[batch, row, head, d]`; `own` where nothing changed."""
        z = z.transpose(1, 2).to(self.q.dtype).contiguous()
        return z if own is None else torch.where(changed.transpose(1, 2)[..., None], z, own)

    def weights(self, own: Float[Tensor, "batch head row key"]) -> Float[Tensor, "batch head row key"]:
        """The pattern that the model itself computes, edited; with gradients."""
        if not self.meeting.members:
            return own
        pattern, _ = self._opened.block(slice(0, self.q.shape[2]))
        return torch.where(self.rescoring.changed[..., None], pattern.to(own.dtype), own)
