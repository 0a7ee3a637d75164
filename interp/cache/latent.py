"""Layers of multi-head latent attention: one latent and one rotated key a token, from which all heads are made.

Such a layer stores one head. Its key is `[latent, rotated key]` and its value is the latent, a view of the key's first
channels, so nothing is stored twice: what `interp.seam.latent` says attends to them so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from jaxtyping import Float

from interp.cache.segments import Segment
from interp.cache.stored_layer import StoredLayer

Tensor = torch.Tensor


class StoredLatent(StoredLayer):
    """A `StoredLayer` that models hand latents and rotated keys, and that hands them back.

    To everybody else it is a layer of one head: keys `[batch, 1, token, d_latent + d_rotated]`, whose first `tied`
    channels are the values.
    """

    def update(
        self,
        key_states: Float[Tensor, "batch 1 new d_latent"],
        value_states: Float[Tensor, "batch 1 new d_rotated"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        self.tied = key_states.shape[-1]
        keys = torch.cat([key_states, value_states], -1)
        keys, _ = super().update(keys, keys[..., : self.tied])
        return self._parted(keys)

    def _parted(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        return keys[..., : self.tied], keys[..., self.tied :]

    @property
    def widths(self) -> tuple[int, int]:
        """Channels of a latent, and of a rotated key."""
        return self.d_value, self.d_head - self.d_value


class StoredIndexed(StoredLatent):
    """A `StoredLatent` whose model chooses for each query, by an index, which tokens it attends to (sparse attention).

    Keys of the index `[batch, token, d_index]` are those of all tokens, also of those that a policy drops: the model
    counts its choice in the text's columns. For the same reason it gets latents at the columns of their tokens, zeros
    where none is left; the seam attends to what is stored, by the columns of the model's mask. Not in slots: a step
    there knows no mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.indexer_keys: Tensor | None = None

    def update_indexer(self, indexer_key_states: Float[Tensor, "batch new d_index"]) -> Tensor:
        """Keep keys of the index; returns those of all tokens."""
        held = [] if self.indexer_keys is None else [self.indexer_keys]
        self.indexer_keys = torch.cat([*held, indexer_key_states], 1)
        return self.indexer_keys

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = super().update(*args, **kwargs)
        return self._parted(self._by_column()) if self.compressed else new

    def holding(self, segments: Iterable[Segment]) -> Self:
        made = super().holding(segments)
        rows = made.segments[0].keys.shape[0]
        if self.indexer_keys is not None and len(self.indexer_keys) == 1:  # one text, in several variants
            made.indexer_keys = self.indexer_keys.expand(rows, -1, -1)
        return made

    @property
    def keys(self) -> Tensor | None:
        """Stored keys at the columns of their tokens `[batch, 1, seen, d_head]`: a model may ask how many there are."""
        return self._by_column() if self.is_initialized else None

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        self._replace(value, "keys")

    def _by_column(self) -> Float[Tensor, "batch 1 seen d_head"]:
        keys, _ = self.dense()
        if not self.compressed:
            return keys
        at = (self.places().long() + 1)[..., None].expand_as(keys)
        spread = keys.new_zeros(*keys.shape[:2], self.seen + 1, keys.shape[-1])  # what stands nowhere comes first
        return spread.scatter(2, at, keys)[:, :, 1:]

    @property
    def needs_seam(self) -> str | None:
        return "fewer tokens than the model's index chooses from" if self.compressed else None

    def move_to_slots(self) -> None:
        pass

    def reset(self) -> None:
        super().reset()
        self.indexer_keys = None

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        super()._map(function)
        self.indexer_keys = None if self.indexer_keys is None else function(self.indexer_keys)

    def crop(self, tokens: int) -> None:
        super().crop(tokens)
        if self.indexer_keys is not None:
            self.indexer_keys = self.indexer_keys[:, : self.seen]
