"""What a full-attention layer holds under a cache policy: segments of tokens, and how they may be changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from interp_kernels import KeySegment
from jaxtyping import Int
from transformers.cache_utils import DynamicLayer

from interp.cache.segments import Segment, joined
from interp.cache.slots import Slots, fit, newest_apart
from interp.errors import InterpError

Tensor = torch.Tensor


class StoredLayer(DynamicLayer):
    """A full-attention layer whose tokens lie in `segments`, the last of which grows.

    While nothing was compressed there is one dense segment, and the layer behaves as transformers' own. `seam` says
    whether the attention seam is in place: it attends to the segments, so `update` need not build a dense view.

    A layer that keeps its size may hold its tokens in `slots` instead, as its only segment, see `interp.stepping`.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.seen = 0
        self.padding: Tensor | None = None
        """Padding columns on the left of each text `[batch]`, None where there is none; set by the keeper."""
        self.newest_at_compression = 0
        """Tokens in the last segment right after compression; policies that act at every step bring it back to that.
        Of tokens in slots, as many are the newest ones."""
        self.slots: Slots | None = None
        self.kv_heads = self.d_head = self.d_value = 0
        self.seam = False
        super().__init__()

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
        parts = [part(segment) for segment in self.segments]
        if len(parts) == 1 and not self.in_slots:  # those are written in place, and what is handed out should stay
            return parts[0]
        return torch.cat(parts, 2) if parts else None

    def _replace(self, value: Tensor | None, name: str) -> None:
        if value is not None:
            raise InterpError(f"{name} of a cache layer under a policy cannot be set from outside; edit hook_rot_k|v.")

    @property
    def compressed(self) -> bool:
        """Whether anything was dropped, so that dense attention over the tail alone would be wrong."""
        return len(self.segments) > 1 or (bool(self.segments) and len(self.segments[0]) != self.seen)

    @property
    def needs_seam(self) -> str | None:
        """What of its content dense keys and values would misrepresent, or None."""
        if any(segment.keys.shape[1] != self.kv_heads for segment in self.segments):
            return "the keys of every query head"
        if any(segment.log_count is not None for segment in self.segments):
            return "tokens that stand for several, with a bias"
        return None

    @property
    def kept(self) -> int:
        """Tokens stored in each head."""
        return sum(map(len, self.segments))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.kv_heads, self.d_head, self.d_value = key_states.shape[1], key_states.shape[-1], value_states.shape[-1]
        self.segments = [Segment(key_states[:, :, :0], value_states[:, :, :0], range(0))]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not torch.is_inference_mode_enabled() and any(s.keys.is_inference() for s in self.segments):
            self._map(torch.clone)  # what was stored in inference mode could not be written in place here
        new = Segment(key_states, value_states, range(self.seen, self.seen + key_states.shape[2]))
        new = new.per_head(self.segments[-1].keys.shape[1])
        free = self.in_slots and not self.newest_in_slot
        if free and self.seam and len(new) == 1 and not key_states.requires_grad:
            assert self.slots is not None
            self.slots.write(new)
            self.segments = [self.slots.whole]
        else:
            self.leave_slots()
            self.segments[-1] = joined([self.segments[-1], new])
        self.seen += len(new)
        if self.compressed and self.seam:
            return key_states, value_states  # the seam attends to the segments
        return self.dense()

    def dense(self) -> tuple[Tensor, Tensor]:
        """Stored keys and values with all channels, for code that knows nothing of segments."""
        keys, values = self.keys, self.values
        assert keys is not None, "nothing was stored yet"
        assert values is not None
        return keys, values

    def places(self) -> Int[Tensor, "batch head token"]:
        """Column in the input of every stored token, in storage order."""
        return torch.cat([segment.at().expand(segment.keys.shape[:3]) for segment in self.segments], 2)

    def for_kernel(self) -> list[KeySegment]:
        """The segments as `interp_kernels.packed_decode` takes them."""
        return [segment.for_kernel(self.padding, self.d_head) for segment in self.segments]

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
        return any(segment.mass is not None for segment in self.segments)

    def receive(self, mass: tuple[Tensor, ...]) -> None:
        """Add attention received `[batch, head, token]` of every segment to the account of those that keep one."""
        for segment, received in zip(self.segments, mass, strict=True):
            if segment.mass is not None:
                segment.mass.add_(received)

    @property
    def in_slots(self) -> bool:
        """Whether the tokens lie in slots; segments that others put here do not."""
        return self.slots is not None and (self.newest_in_slot or self.segments[0] is self.slots.held)

    @property
    def newest_in_slot(self) -> bool:
        """Whether the newest token lies in the slot to spare, and another one has yet to go."""
        return self.slots is not None and self.segments[0] is self.slots.whole

    def move_to_slots(self) -> None:
        """Let the tokens, which are as many as a policy lets stay, lie in slots if they may."""
        if fit(self.segments):
            self.slots = Slots.of(self.segments)
            self.free_slot()

    def free_slot(self) -> None:
        """One token of each head has gone, and the newest one lies in its slot."""
        assert self.slots is not None
        self.segments = [self.slots.held]

    def leave_slots(self) -> None:
        """Let tokens that lie in slots lie in segments of their own again, the newest in the last one."""
        if self.in_slots:
            (tokens,) = self.segments
            self.segments = newest_apart(tokens, self.newest_at_compression + self.newest_in_slot)
        self.slots = None

    def get_seq_length(self) -> int:
        """Tokens seen, stored or not: position ids follow it."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.seam or not self.compressed:
            return self.seen + query_length, 0
        return self.kept + query_length, self.seen - self.kept

    def reset(self) -> None:
        self.segments, self.seen, self.padding, self.slots, self.is_initialized = [], 0, None, None, False

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.in_slots:
            assert self.slots is not None
            full, self.slots = self.newest_in_slot, self.slots.map(function)
            self.segments = [self.slots.whole if full else self.slots.held]
        else:
            self.segments = [segment.map(function) for segment in self.segments]
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

        Raises InterpError where those are not all in the part that only grows: what was evicted does not come back.
        """
        drop = -tokens if tokens <= 0 else max(0, self.seen - tokens)
        if drop == 0 or not self.is_initialized:
            return
        self.leave_slots()
        tail = self.segments[-1]
        spared = self.compressed and len(self.segments) == 1  # a layer of nothing would count as uncompressed
        if drop > len(tail) - spared:
            raise InterpError(
                f"the cache can forget its newest {len(tail) - spared} tokens, not {drop}: what a policy compressed "
                "does not come back."
            )
        self.segments = [*self.segments[:-1], tail.part(slice(0, len(tail) - drop))]
        self.seen -= drop
