"""One call of `packed_decode`: the stored segments, what is asked of them, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class KeySegment(NamedTuple):
    """Some stored tokens of every head. A channel that is not stored counts as zero."""

    keys: Tensor
    """[B, Hs, n, T], T stored channels."""
    values: Tensor
    """[B, Hs, n, Tv]."""
    channels: Tensor | None = None
    """Which channels `keys` holds, integers [B, Hs, T]; None: all of them, T = D."""
    value_channels: Tensor | None = None
    """Which channels `values` holds, integers [B, Hs, Tv]; None: all of them."""
    bias: Tensor | None = None
    """Added to the scores, [B or 1, Hs or 1, n]: -inf hides a token, log(c) makes it weigh like c tokens."""
    offset: Tensor | None = None
    """Added to every key of the segment, [B, Hs, D]: what stands in for channels that are not stored."""


class Decoded(NamedTuple):
    """What `packed_decode` returns; all in fp32 (fp64 for fp64 inputs)."""

    z: Tensor
    """Attention output [B, H, N, Dv]."""
    mass: tuple[Tensor, ...] | None
    """Attention that every stored token receives, summed over queries and the group's heads; [B, Hs, n] a segment.
    None unless asked for."""


class PackedCall(NamedTuple):
    """The arguments of `packed_decode`, checked, with its defaults filled in."""

    q: Tensor
    segments: Sequence[KeySegment]
    scale: float
    softcap: float | None
    sinks: Tensor | None
    d_value: int
    mass: bool

    def rows(self, start: int, stop: int) -> PackedCall:
        """The same for queries start..stop alone, with the tokens that are newer than all of them left out."""
        *older, last = self.segments
        seen = slice(0, last.keys.shape[2] - (self.q.shape[2] - stop))
        bias = None if last.bias is None else last.bias[:, :, seen]
        last = last._replace(keys=last.keys[:, :, seen], values=last.values[:, :, seen], bias=bias)
        return self._replace(q=self.q[:, :, start:stop], segments=[*older, last])


def in_blocks(call: PackedCall, most_scores: int, attend: Callable[[PackedCall], Decoded]) -> Decoded:
    """attend(call), for a few queries at a time where there would be more scores than `most_scores`."""
    batch, heads, queries, _ = call.q.shape
    total = sum(s.keys.shape[2] for s in call.segments)
    step = max(1, most_scores // max(1, batch * heads * total))
    if step >= queries:
        return attend(call)
    parts, received = [], None
    for start in range(0, queries, step):
        z, mass = attend(call.rows(start, min(start + step, queries)))
        parts.append(z)
        if received is None:
            received = mass
        elif mass is not None:  # later blocks see more of the newest tokens
            received = tuple(
                pad(old, (0, new.shape[-1] - old.shape[-1])) + new for old, new in zip(received, mass, strict=True)
            )
    return Decoded(torch.cat(parts, 2), received)
