"""Slots of a layer that keeps its size while tokens come: a step writes one token, and no tensor is made anew.

A policy that acts at every step lets one token go for each that comes. Where its tokens are dense, one kernel does all
of a step (`interp_kernels.decode_step`: attend, add the attention received, let a token go or merge it), in place. For
that the layer's tokens lie in one segment of slots in no particular order, with a slot to spare for the next token.
The seam says when a step is done that way (`Site._in_one_kernel`). Whatever needs the newest tokens to lie apart, in
the text's order, gets them so by `newest_apart`, and the layer returns to slots when it has its size again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int

from interp.cache.segments import Segment, joined

Tensor = torch.Tensor


@dataclass(frozen=True)
class Slots:
    """Tokens of every head of one layer, and a place for one more.

    The last slot is to spare, or holds the newest token until another one goes.
    """

    keys: Float[Tensor, "batch head slot d_head"]
    values: Float[Tensor, "batch head slot d_value"]
    positions: Int[Tensor, "batch head slot"]
    mass: Float[Tensor, "batch head slot"]
    tied: int | None = None
    """As in `Segment`: values are a view of keys."""

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Slots:
        """The tokens of segments that `fit`, copied."""
        tokens = joined(segments)
        assert tokens.mass is not None
        held = cls(tokens.keys, tokens.values, tokens.at().expand(tokens.keys.shape[:3]), tokens.mass, tokens.tied)
        return held.map(lambda x: torch.cat([x, torch.zeros_like(x[:, :, :1])], 2))

    @cached_property
    def whole(self) -> Segment:
        """All slots."""
        return Segment(self.keys, self.values, self.positions, mass=self.mass, tied=self.tied)

    @cached_property
    def held(self) -> Segment:
        """All slots but the last, as views."""
        return self.whole.map(lambda x: x[:, :, :-1])

    def map(self, function: Callable[[Tensor], Tensor]) -> Slots:
        """The slots with `function` applied to all tensors (for the batch axis, or the device)."""
        keys, positions, mass = map(function, (self.keys, self.positions, self.mass))
        values = function(self.values) if self.tied is None else keys[..., : self.tied]
        return Slots(keys, values, positions, mass, self.tied)

    def write(self, token: Segment) -> None:
        """Put the newest token, one in each head, into the last slot."""
        self.keys[:, :, -1:] = token.keys
        self.values[:, :, -1:] = token.values
        self.positions[:, :, -1:] = token.at()
        self.mass[:, :, -1] = 0.0


def fit(segments: Sequence[Segment]) -> bool:
    """Whether tokens may lie in slots: dense ones that keep account of attention, with nothing else to them.

    Tokens that were read with gradients may not, since slots are written in place.
    """
    return all(
        s.mass is not None
        and all(extra is None for extra in (s.channels, s.value_channels, s.key_mean, s.log_count, s.summary))
        and not (s.keys.requires_grad or s.values.requires_grad)
        for s in segments
    )


def newest_apart(segment: Segment, newest: int) -> list[Segment]:
    """[the other tokens, the `newest` ones] of every head, copied, both in the text's order."""
    order = segment.at().argsort(-1)
    older = len(segment) - newest
    return [segment.take(order[..., :older]), segment.take(order[..., older:])]
