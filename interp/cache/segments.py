"""What a compressed cache layer holds: segments of tokens, each stored in its own way.

A segment is some tokens of every head: keys with all channels or with some, values likewise, and where in the text each
token stands. Attention does not care about the order of its keys, so a layer may hold its tokens in whatever pieces are
cheap: old keys packed to few channels, sinks and recent tokens dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from interp_kernels import KeySegment, cut, think_pack, unpacked
from jaxtyping import Bool, Float, Int

Tensor = torch.Tensor
Positions = range | Tensor
Part = Literal["keys", "values"]

INDEX = torch.int16
"""Stored type of channel indices."""
PER_HEAD = ("channels", "value_channels", "key_mean")
"""Fields without a token axis."""
NO_SUMMARY = -1
NOWHERE = -1
"""Position of what stands in a place that a text does not use: before every text, so hidden as padding is."""
POSITION = torch.int32
"""Stored type of token positions, where they are no plain range."""


@dataclass(frozen=True)
class Segment:
    """Some stored tokens. `head` is the number of stored heads: key/value heads, or query heads where a method wants
    another token or channel set for each of them. Replaced as a whole, changed in place only by `overwrite`,
    `write_keys`, `write_values` and where attention is added to `mass`."""

    keys: Float[Tensor, "batch head token kept"]
    values: Float[Tensor, "batch head token kept_value"]
    positions: Positions
    """Column of each token in the input: a range where all heads hold the same run, else `[batch, head, token]`."""
    channels: Int[Tensor, "batch head kept"] | None = None
    """Which key channels are stored, rising; None: all."""
    value_channels: Int[Tensor, "batch head kept_value"] | None = None
    mass: Float[Tensor, "batch head token"] | None = None
    """Attention received so far, fp32, where a policy keeps account of it."""
    key_mean: Float[Tensor, "batch head dropped"] | None = None
    """What stands for each key channel that is not stored, the same for all tokens; None: zero."""
    log_count: Float[Tensor, "batch head token"] | None = None
    """Logarithm of how many tokens a merged one stands for, added to its logit."""
    tied: int | None = None
    """How many of a key's first channels are the value, which is a view of them whatever is given for it (latent
    attention); None: values are tensors of their own."""
    summary: range | Int[Tensor, "batch head token"] | None = None
    """Which are summaries, tokens that stand for several and are none of the text: the number of each among its
    layer's, -1 for a token of the text. A range where the segment holds nothing else, None where it holds none."""

    def __post_init__(self) -> None:
        if self.tied is not None:  # whatever was given for values: they are written with the keys
            object.__setattr__(self, "values", self.keys[..., : self.tied])

    def __len__(self) -> int:
        return self.keys.shape[2]

    def stored_channels(self, of: Part) -> Int[Tensor, "batch head kept"] | None:
        """Which channels of keys or values are stored, rising; None: all."""
        return self.channels if of == "keys" else self.value_channels

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of everything that takes memory: tied values are none of it."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and (field.name != "values" or self.tied is None):
                yield field.name, value

    def map(self, function: Callable[[Tensor], Tensor]) -> Segment:
        """The segment with `function` applied to all its tensors (for the batch axis, or the device)."""
        mapped: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors()}
        return replace(self, **mapped)

    def at(self) -> Int[Tensor, "batch head token"]:
        """Positions as a tensor; batch and head may be 1 where they are the same for all."""
        if isinstance(self.positions, Tensor):
            return self.positions
        run = self.positions
        return torch.arange(run.start, run.stop, dtype=POSITION, device=self.keys.device)[None, None]

    def summary_number(self) -> Int[Tensor, "batch head token"]:
        """Number of the summary that each token is, -1 for tokens of the text; batch and head may be 1 where they are
        the same for all."""
        if isinstance(self.summary, Tensor):
            return self.summary
        device = self.keys.device
        if self.summary is None:
            return torch.full((1, 1, len(self)), NO_SUMMARY, dtype=POSITION, device=device)
        return torch.arange(self.summary.start, self.summary.stop, dtype=POSITION, device=device)[None, None]

    def of_the_text(self) -> Bool[Tensor, "batch head token"]:
        """Which stored tokens are tokens of the text, and no summaries; batch and head may be 1."""
        return self.summary_number() == NO_SUMMARY

    def part(self, tokens: slice) -> Segment:
        """A run of the stored tokens, copied, so that the rest can be freed."""
        cut: dict[str, Any] = {
            name: tensor if name in PER_HEAD else tensor[:, :, tokens].clone() for name, tensor in self.tensors()
        }
        for name in ("positions", "summary"):
            if isinstance(run := getattr(self, name), range):
                cut[name] = run[tokens]
        return replace(self, **cut)

    def take(self, index: Int[Tensor, "batch head token"]) -> Segment:
        """The tokens at `index` (places in this segment, not positions), in that order."""
        index = index.long()
        shape = self.keys.shape[:2]
        at = self.at().expand(*shape, -1).gather(2, index)
        taken: dict[str, Any] = {"positions": at}
        if self.summary is not None:
            taken["summary"] = self.summary_number().expand(*shape, -1).gather(2, index)
        for name, tensor in self.tensors():
            if name in ("keys", "values"):
                taken[name] = tensor.gather(2, index[..., None].expand(-1, -1, -1, tensor.shape[-1]))
            elif name in ("mass", "log_count"):
                taken[name] = tensor.gather(2, index)
        return replace(self, **taken)

    def pack(self, channels: Int[Tensor, "batch head kept"]) -> Segment:
        """Keys cut down to `channels` of a dense segment.

        On a CPU keys and values are laid out channel by channel (the shapes stay): with few queries, as in decoding,
        products along the tokens are then faster, and a packed segment hardly ever changes. Of keys with tied values
        all those channels must stay.
        """
        keys, values = think_pack(self.keys, channels), _channel_major(self.values)
        return replace(self, keys=keys, values=values, channels=channels.to(INDEX))

    def pack_values(self, channels: Int[Tensor, "batch head kept"]) -> Segment:
        """Values cut down to `channels` of a dense segment."""
        return replace(self, values=think_pack(self.values, channels), value_channels=channels.to(INDEX))

    def dense_keys(self, width: int) -> Float[Tensor, "batch head token d_head"]:
        """Keys with all channels; what stands for those that are not stored is zero or `key_mean`."""
        keys, offset = unpacked(self.keys, self.channels, width), self._offset(width)
        return keys if offset is None else keys + offset[:, :, None]

    def _offset(self, width: int) -> Tensor | None:
        if self.key_mean is None or self.channels is None:
            return None
        dropped = others(self.channels, width)
        zeros = self.keys.new_zeros(*dropped.shape[:2], width)
        return zeros.scatter(-1, dropped, self.key_mean)

    def dense_values(self, width: int) -> Float[Tensor, "batch head token d_value"]:
        return unpacked(self.values, self.value_channels, width)

    def per_head(self, heads: int) -> Segment:
        """The segment with every stored head repeated, so that there are `heads`."""
        times = heads // self.keys.shape[1]
        if times == 1:
            return self
        repeated: dict[str, Any] = {name: tensor.repeat_interleave(times, 1) for name, tensor in self.tensors()}
        return replace(self, **repeated)

    def overwrite(self, slot: Int[Tensor, "batch head"], token: Segment, where: Tensor) -> None:
        """Put the one token of `token` in place of the one at `slot` in the heads with `where [batch, head]` True.

        `token` must be dense; it is cut to this segment's channels.
        """
        keys, values = cut(token.keys, self.channels), cut(token.values, self.value_channels)
        new: dict[str, Any] = {"keys": keys, "values": values, "positions": token.at().expand(*where.shape, 1)}
        new |= {"summary": token.summary_number().expand(*where.shape, 1)}
        zero = torch.zeros(*where.shape, 1, device=where.device)
        new |= {n: zero if (of := getattr(token, n)) is None else of for n in ("mass", "log_count")}
        for name, tensor in self.tensors():
            if name in PER_HEAD:
                continue
            index = slot.long().view(*slot.shape, *[1] * (tensor.ndim - 2))
            index = index.expand(-1, -1, *([1] if tensor.ndim == 3 else [1, tensor.shape[-1]]))
            old = tensor.gather(2, index)
            chosen = where.view(*where.shape, *[1] * (tensor.ndim - 2))
            tensor.scatter_(2, index, torch.where(chosen, new[name].to(tensor.dtype), old))

    def write_keys(self, keys: Float[Tensor, "batch head token d_head"]) -> None:
        """Replace the stored channels of all keys, in place, by those of dense keys."""
        self.keys.copy_(cut(keys, self.channels))

    def write_values(self, values: Float[Tensor, "batch head token d_value"]) -> None:
        self.values.copy_(cut(values, self.value_channels))

    def for_kernel(self, padding: Int[Tensor, " batch"] | None, d_head: int) -> KeySegment:
        """The segment as `interp_kernels` wants it; tokens before `padding` (left padding by text) are hidden."""
        bias = self.log_count
        if padding is not None:
            hidden = torch.where(self.at() < padding[:, None, None], -torch.inf, 0.0)
            bias = hidden if bias is None else bias + hidden
        return KeySegment(self.keys, self.values, self.channels, self.value_channels, bias, self._offset(d_head))


def joined(segments: Sequence[Segment]) -> Segment:
    """Dense segments one after the other as one. Positions stay a range where they follow on each other."""
    if len(segments) == 1:
        return segments[0]
    runs = [s.positions for s in segments if len(s)] or [segments[0].positions]
    plain = [run for run in runs if isinstance(run, range)]
    if len(plain) == len(runs) and all(a.stop == b.start for a, b in pairwise(plain)):
        positions: Positions = range(plain[0].start, plain[-1].stop)
    else:
        shape = segments[0].keys.shape[:2]
        positions = torch.cat([s.at().expand(*shape, -1) for s in segments], 2)

    def cat(name: str) -> Tensor | None:
        parts = [getattr(s, name) for s in segments]
        if all(part is None for part in parts):
            return None
        empty = [torch.zeros(s.keys.shape[:3], device=s.keys.device) for s in segments]
        return torch.cat([e if p is None else p for p, e in zip(parts, empty, strict=True)], 2)

    summary = None
    if any(s.summary is not None for s in segments):
        shape = segments[0].keys.shape[:2]
        summary = torch.cat([s.summary_number().expand(*shape, -1) for s in segments], 2)
    keys = torch.cat([s.keys for s in segments], 2)
    tied = segments[0].tied if len({s.tied for s in segments}) == 1 else None
    values = keys if tied is not None else torch.cat([s.values for s in segments], 2)
    return Segment(keys, values, positions, mass=cat("mass"), log_count=cat("log_count"), tied=tied, summary=summary)


def either(where: Bool[Tensor, "batch head"], a: Segment, b: Segment) -> Segment:
    """The one token of `a` where `where` is True, else that of `b`; with all channels of `b`, zeros where `a` lacks
    them."""
    d_head, d_value = b.keys.shape[-1], b.values.shape[-1]
    shape = (*where.shape, 1)

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(where.view(*where.shape, *[1] * (y.ndim - 2)), x, y)

    return Segment(
        pick(a.dense_keys(d_head), b.keys),
        pick(a.dense_values(d_value), b.values),
        pick(a.at().expand(shape), b.at().expand(shape)),
        mass=None if a.mass is None or b.mass is None else pick(a.mass, b.mass),
        log_count=None if a.log_count is None or b.log_count is None else pick(a.log_count, b.log_count),
    )


def without_one(segments: Sequence[Segment], place: Int[Tensor, "batch head"]) -> tuple[list[Segment], Segment]:
    """(the segments without one token of each head, those tokens), as `StoredLayer.evict_one` says; older segments are
    written in place."""
    *older, tail = segments
    if len(tail) == 0:  # there is none to take the place: the first segment gets shorter
        held = older[0]
        stays = torch.arange(len(held) - 1, device=place.device)
        return [held.take(stays + (stays >= place[..., None])), *segments[1:]], held.take(place[..., None])
    victim = aged = tail.part(slice(0, 1))
    first = 0
    for segment in older:
        here = (place >= first) & (place < first + len(segment))
        slot = (place - first).clamp(0, max(0, len(segment) - 1))
        if len(segment):
            victim = either(here, segment.take(slot[..., None]), victim)
            segment.overwrite(slot, aged, here)
        first += len(segment)
    leaves = (place - first).clamp_min(0)  # the aged one where an older token went: it has moved
    if bool((leaves > 0).any()):
        victim = either(leaves > 0, tail.take(leaves[..., None]), victim)
        stays = torch.arange(len(tail) - 1, device=leaves.device)
        return [*older, tail.take(stays + (stays >= leaves[..., None]))], victim
    return [*older, tail.part(slice(1, len(tail)))], victim


def protected(whole: Segment, padding: Tensor | None, sinks: int, recent: int) -> tuple[Segment, list[Segment]]:
    """(tokens that lose channels, [sinks, recent]) of a dense segment whose tokens stand in the text's order.

    Padding on the left counts as old. Where sinks and recent tokens are all there is, the first segment is empty.
    """
    total = len(whole)
    recent = min(recent, total)
    first = torch.zeros(whole.keys.shape[:2], dtype=torch.long, device=whole.keys.device)
    if padding is not None:
        first = (whole.at() < padding[:, None, None]).sum(-1).expand(whole.keys.shape[:2])
    if not bool(first.any()):
        sinks = max(0, min(sinks, total - recent))
        pieces = [slice(sinks, total - recent), slice(0, sinks), slice(total - recent, total)]
        old, front, tail = (whole.part(piece) for piece in pieces)
    else:
        place = torch.arange(total - recent, device=first.device).expand(*first.shape, -1)
        own = (total - recent - first).clamp(0, sinks)[..., None]  # how many of its sinks are not recent
        sinks = int(own.max())
        begins = first.clamp_max(total - recent)[..., None]
        # a text that has fewer than another lays padding apart in their stead
        is_sink = (place >= begins - (sinks - own)) & (place < begins + own)
        order = is_sink.sort(dim=-1, stable=True).indices  # old tokens first, then the sinks, each in the text's order
        old, front = whole.take(order[..., : total - recent - sinks]), whole.take(order[..., total - recent - sinks :])
        tail = whole.part(slice(total - recent, total))
    return old, [front, tail] if sinks else [tail]


def others(channels: Int[Tensor, "batch head kept"], width: int) -> Int[Tensor, "batch head dropped"]:
    """The channels of `width` that are not among `channels`, rising."""
    absent = torch.ones(*channels.shape[:2], width, dtype=torch.bool, device=channels.device)
    absent.scatter_(-1, channels.long(), False)
    return absent.nonzero()[:, -1].view(*channels.shape[:2], -1)


def _channel_major(x: Tensor) -> Tensor:
    return x.contiguous() if x.is_cuda else x.mT.contiguous().mT
