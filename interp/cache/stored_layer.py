"""What a full-attention layer holds under a cache policy: segments of tokens, and how they may be changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Self

import torch
from interp_kernels import KeySegment
from jaxtyping import Bool, Float, Int
from transformers.cache_utils import DynamicLayer

from interp.cache.places import check_places
from interp.cache.segments import NOWHERE, Part, Segment, joined, protected, without_one
from interp.cache.slots import Slots, fit, newest_apart
from interp.errors import InterpError

Tensor = torch.Tensor


class StoredLayer(DynamicLayer):
    """A full-attention layer whose tokens lie in `segments`, the last of which grows.

    While nothing was compressed there is one dense segment, and the layer behaves as transformers' own. `seam` says
    whether the attention seam is in place: it attends to the segments, so `update` need not build a dense view.

    `segments` is there to be read. A cache policy changes a layer by `keep` (tokens) and `lay_before_recent` (what they
    become, and others that stand for the rest), `protect` and `pack` (channels), and at a step `evict_one`; whoever
    only looks may make a copy that is `holding` other segments.

    A layer that keeps its size may hold its tokens in `slots` instead, as its only segment, see `interp.cache.slots`.
    """

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self.seen = 0
        self.padding: Tensor | None = None
        """Padding columns on the left of each text `[batch]`, None where there is none; set by the keeper."""
        self.newest_at_compression = 0
        """Tokens in the last segment right after compression; policies that act at every step bring it back to that.
        Of tokens in slots, as many are the newest ones."""
        self.newest_query_only = False
        """Whether accounts hold what the newest query alone pays; set by `keep`."""
        self.settled = 0
        """Tokens seen when something last happened that no crop undoes: tokens or channels went, or the attention that
        tokens receive was added up."""
        self.slots: Slots | None = None
        self.kv_heads = self.d_head = self.d_value = 0
        self.tied: int | None = None
        """How many of a key's first channels are its value (`interp.cache.latent`); None: values are their own."""
        self.seam = False
        super().__init__()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What the layer holds, oldest first but for dense sinks, which stand behind the tokens that lost channels."""
        return tuple(self._segments)

    def holding(self, segments: Iterable[Segment]) -> Self:
        """A copy of the layer that holds other segments, of the same tokens seen; this one stays as it is."""
        made = copy.copy(self)
        made._segments, made.slots = list(segments), None
        return made

    def whole(self, heads: int | None = None) -> Segment:
        """All stored tokens, which are dense, as one segment in storage order.

        heads: how many heads it should have, a multiple of those stored: with as many as there are query heads, every
        query head finds its own copy of the head that it reads. None: as stored.
        """
        whole = joined(self._segments)
        return whole if heads is None else whole.per_head(heads)

    def keep(
        self,
        index: Int[Tensor, "batch head kept"] | None = None,
        recent: int = 0,
        mass: Float[Tensor, "batch head token"] | None = None,
        *,
        newest_query_only: bool = False,
        unused: Bool[Tensor, "batch head kept"] | None = None,
    ) -> None:
        """Keep the tokens at `index` and the newest `recent` ones, which lie apart and grow; drop and free the others.

        index: places in `whole()`, in the order in which the tokens should lie, none of them among the newest `recent`;
            None: no others. With a multiple of the stored heads, each is stored so many times from now on.
        mass: attention that each token of `whole()` has received so far, fp32, if account is to be kept of it: from now
            on what each new query pays is added, see `interp.interventions.base.Plan`.
        newest_query_only: the account holds what the newest query alone pays, instead of a sum over all.
        unused: which of `index` are places that a text does not need, since another one keeps more: what stands there
            is hidden, as padding is.
        """
        self.newest_query_only, self.settled = newest_query_only, self.seen
        if index is not None:
            check_places(index, self.segments, recent)
        whole = self.whole(None if index is None else index.shape[1])
        if mass is not None:
            whole = replace(whole, mass=mass)
        tail = whole.part(slice(len(whole) - recent, len(whole)))
        old = [] if index is None or index.shape[-1] == 0 else [whole.take(index)]
        if old and unused is not None:
            if self.padding is None:
                self.padding = torch.zeros(len(whole.keys), dtype=torch.long, device=whole.keys.device)
            at = old[0].at()
            old = [replace(old[0], positions=at.masked_fill(unused & (at >= self.padding[:, None, None]), NOWHERE))]
        self._segments = [*old, tail]

    def lay_before_recent(self, *old: Segment) -> None:
        """Put other tokens in the place of those that `keep` has laid before the recent ones: the same ones changed, or
        others that stand for what was dropped."""
        self._segments = [*old, self._segments[-1]]

    def protect(self, sinks: int = 0, recent: int = 0, heads: int | None = None) -> Segment:
        """Lay apart the first `sinks` tokens of the text and the newest `recent` ones, which `pack` leaves as they are.

        Returns the others, copied, in the text's order; padding on the left is among them. Where sinks and recent
        tokens are all there is, they are none and the layer stays as it was. heads: as in `whole`.
        """
        old, dense = protected(self.whole(heads), self.padding, sinks, recent)
        if len(old):
            self._segments = [old, *dense]
        return old

    def pack(
        self,
        channels: Int[Tensor, "batch head kept"] | None = None,
        value_channels: Int[Tensor, "batch head kept"] | None = None,
        *,
        keys: Float[Tensor, "batch head token d_head"] | None = None,
        key_mean: Float[Tensor, "batch head dropped"] | None = None,
    ) -> None:
        """Drop channels of what `protect` returned: those of keys that are not in `channels`, of values likewise.

        channels: rising, as many in every head; None: all stay.
        keys: what these tokens' keys become before they are cut, where kept channels take over from dropped ones.
        key_mean: what stands for each dropped key channel, rising, the same for all tokens; None: zero.
        """
        packed, *dense = self._segments
        self.settled = self.seen
        if not dense:
            raise InterpError("pack cuts what protect returned; protect some tokens first, or none: protect().")
        if keys is not None:
            packed = replace(packed, keys=keys)
        if channels is not None:
            packed = replace(packed.pack(channels), key_mean=key_mean)
        if value_channels is not None:
            packed = packed.pack_values(value_channels)
        self._segments = [packed, *dense]

    def evict_one(self, place: Int[Tensor, "batch head"]) -> Segment:
        """One token of each head goes, and the oldest of the last segment takes its place: nothing else moves.

        place: of the token, counted in storage order. One of the last segment just goes, since that stays in the text's
        order. Returns the evicted tokens, one of each head, with zeros for channels that they lacked.
        """
        self.settled = self.seen
        self._segments, victim = without_one(self._segments, place)
        return victim

    @property
    def keys(self) -> Tensor | None:
        """Stored keys with all channels `[batch, head, token, d_head]`, in storage order."""
        return self._dense(lambda s: s.dense_keys(self.d_head))

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        self._replace(value, "keys")

    @property
    def values(self) -> Tensor | None:
        return self._dense(lambda s: s.dense_values(self.d_value))

    @values.setter
    def values(self, value: Tensor | None) -> None:
        self._replace(value, "values")

    def _dense(self, part: Callable[[Segment], Tensor]) -> Tensor | None:
        parts = [part(segment) for segment in self._segments]
        if len(parts) == 1 and not self.in_slots:  # those are written in place, and what is handed out should stay
            return parts[0]
        return torch.cat(parts, 2) if parts else None

    def _replace(self, value: Tensor | None, name: str) -> None:
        if value is not None:
            raise InterpError(f"{name} of a cache layer under a policy cannot be set from outside; edit hook_rot_k|v.")

    @property
    def compressed(self) -> bool:
        """Whether anything was dropped, so that dense attention over the tail alone would be wrong."""
        return len(self._segments) > 1 or (bool(self._segments) and len(self._segments[0]) != self.seen)

    @property
    def needs_seam(self) -> str | None:
        """What of its content dense keys and values would misrepresent, or None."""
        if any(segment.keys.shape[1] != self.kv_heads for segment in self._segments):
            return "the keys of every query head"
        if any(segment.log_count is not None for segment in self._segments):
            return "tokens that stand for several, with a bias"
        if self.padding is not None and self.compressed:  # masks are made for the newest columns
            column = torch.arange(self.seen - self.kept, self.seen, device=self.padding.device)
            first = self.padding[:, None, None]
            if bool(((self.places() < first) != (column < first)).any()):
                return "padding where a mask expects a text's tokens"
        return None

    @property
    def lost_something(self) -> bool:
        """Whether anything is gone: a token, or a channel of one."""
        channels = any(s.channels is not None or s.value_channels is not None for s in self._segments)
        return channels or (self.is_initialized and self.kept < self.seen)

    @property
    def kept(self) -> int:
        """Tokens stored in each head."""
        return sum(map(len, self._segments))

    def kept_channels(self, of: Part) -> Bool[Tensor, "head channel"] | None:
        """Which channels of keys or values each stored head of the first sequence keeps of the tokens that lost some,
        on the CPU; None: no token lost any."""
        index = next((held for s in self._segments if (held := s.stored_channels(of)) is not None), None)
        if index is None:
            return None
        kept = torch.zeros(index.shape[1], self.d_head if of == "keys" else self.d_value, dtype=torch.bool)
        return kept.scatter(-1, index[0].long().cpu(), True)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.kv_heads, self.d_head, self.d_value = key_states.shape[1], key_states.shape[-1], value_states.shape[-1]
        self._segments = [Segment(key_states[:, :, :0], value_states[:, :, :0], range(0), tied=self.tied)]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not torch.is_inference_mode_enabled() and any(s.keys.is_inference() for s in self._segments):
            self._map(torch.clone)  # what was stored in inference mode could not be written in place here
        new = Segment(key_states, value_states, range(self.seen, self.seen + key_states.shape[2]), tied=self.tied)
        new = new.per_head(self._segments[-1].keys.shape[1])
        free = self.in_slots and not self.newest_in_slot
        if free and self.seam and len(new) == 1 and not key_states.requires_grad:
            assert self.slots is not None
            self.slots.write(new)
            self._segments = [self.slots.whole]
        else:
            self.leave_slots()
            self._segments[-1] = joined([self._segments[-1], new])
        self.seen += len(new)
        if self.compressed and self.seam:
            return key_states, value_states  # the seam attends to the segments
        return self.dense()

    def dense(self) -> tuple[Tensor, Tensor]:
        """Stored keys and values with all channels, for code that knows nothing of segments."""
        keys, values = self._dense(lambda s: s.dense_keys(self.d_head)), self.values
        assert keys is not None, "nothing was stored yet"
        assert values is not None
        return keys, values

    def places(self) -> Int[Tensor, "batch head token"]:
        """Column in the input of every stored token, in storage order."""
        return torch.cat([segment.at().expand(segment.keys.shape[:3]) for segment in self._segments], 2)

    def for_kernel(self) -> list[KeySegment]:
        """The segments as `interp_kernels.packed_decode` takes them."""
        return [segment.for_kernel(self.padding, self.d_head) for segment in self._segments]

    def additive_mask(self, new: int) -> Tensor:
        """Biases and causality of `new` newest queries over the stored tokens: `[batch, head, new, token]`."""
        parts = self.for_kernel()
        shape = parts[0].keys.shape[:2]
        zero = [torch.zeros(*shape, part.keys.shape[2], device=self.device) for part in parts]
        bias = torch.cat([z if p.bias is None else p.bias + z for p, z in zip(parts, zero, strict=True)], 2)
        later = torch.ones(new, self.kept, dtype=torch.bool, device=self.device).triu(self.kept - new + 1)
        return bias[:, :, None].masked_fill(later, -torch.inf)

    @property
    def keeps_mass(self) -> bool:
        """Whether a policy keeps account of the attention that stored tokens receive."""
        return any(segment.mass is not None for segment in self._segments)

    def mass(self) -> Float[Tensor, "batch head token"]:
        """Attention that every stored token has received, in storage order, summed over the query heads that read a
        stored head; fp32. Zeros where no account is kept."""
        parts = [
            torch.zeros(s.keys.shape[:3], device=s.keys.device) if s.mass is None else s.mass for s in self._segments
        ]
        return torch.cat(parts, 2)

    def receive(self, mass: tuple[Tensor, ...]) -> None:
        """Attention received `[batch, head, token]` of every segment, from the queries that count: it is added to the
        account of those that keep one, or stands in its place where only the newest query counts."""
        for segment, received in zip(self._segments, mass, strict=True):
            if segment.mass is not None and self.newest_query_only:
                segment.mass.copy_(received)
            elif segment.mass is not None:
                segment.mass.add_(received)
                self.settled = self.seen

    def queries_counted(self, new: int) -> int:
        """How many of a call's `new` queries, counted from the newest, `receive` wants the attention of."""
        return min(1, new) if self.newest_query_only else new

    @property
    def in_slots(self) -> bool:
        """Whether the tokens lie in slots; segments that others put here do not."""
        return self.slots is not None and (self.newest_in_slot or self._segments[0] is self.slots.held)

    @property
    def newest_in_slot(self) -> bool:
        """Whether the newest token lies in the slot to spare, and another one has yet to go."""
        return self.slots is not None and self._segments[0] is self.slots.whole

    def move_to_slots(self) -> None:
        """Let the tokens, which are as many as a policy lets stay, lie in slots if they may."""
        if fit(self._segments):
            self.slots = Slots.of(self._segments)
            self.free_slot()

    def free_slot(self) -> None:
        """One token of each head has gone, and the newest one lies in its slot."""
        assert self.slots is not None
        self._segments, self.settled = [self.slots.held], self.seen

    def leave_slots(self) -> None:
        """Let tokens that lie in slots lie in segments of their own again, the newest in the last one."""
        if self.in_slots:
            (tokens,) = self._segments
            self._segments = newest_apart(tokens, self.newest_at_compression + self.newest_in_slot)
        self.slots = None

    def get_seq_length(self) -> int:
        """Tokens seen, stored or not: position ids follow it."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.seam or not self.compressed:
            return self.seen + query_length, 0
        return self.kept + query_length, self.seen - self.kept

    def reset(self) -> None:
        self._segments, self.seen, self.padding, self.slots, self.is_initialized = [], 0, None, None, False
        self.newest_query_only, self.settled, self.newest_at_compression = False, 0, 0

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.in_slots:
            assert self.slots is not None
            full, self.slots = self.newest_in_slot, self.slots.map(function)
            self._segments = [self.slots.whole if full else self.slots.held]
        else:
            self._segments = [segment.map(function) for segment in self._segments]
        self.padding = None if self.padding is None else function(self.padding)

    def offload(self) -> None:
        self._map(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        self._map(lambda x: x.to(self.device, non_blocking=True))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda x: x[indices])

    def crop(self, tokens: int) -> None:
        """Forget the newest tokens: -`tokens` of them, or all but the first `tokens` of the text where it is positive.

        Raises InterpError where that would undo half: what went for those tokens, and what they paid to others, does
        not come back.
        """
        drop = -tokens if tokens <= 0 else max(0, self.seen - tokens)
        if drop == 0 or not self.is_initialized:
            return
        if self.seen - drop < self.settled:
            raise InterpError(
                f"the cache can forget its newest {self.seen - self.settled} tokens, not {drop}: a policy has acted on "
                "the others, and what went for them does not come back; start a new cache, or go on with a copy "
                "(copy.deepcopy) that was made before they came."
            )
        self.leave_slots()
        tail = self._segments[-1]
        self._segments = [*self._segments[:-1], tail.part(slice(0, len(tail) - drop))]
        self.seen -= drop
