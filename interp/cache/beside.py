"""A stored layer beside a recurrent state: blocks that have attention and Mamba side by side (Falcon-H1, Zamba)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from transformers.cache_utils import LinearAttentionLayer

from interp.cache.kinds import kind_of
from interp.cache.latent import StoredIndexed, StoredLatent
from interp.cache.stored_layer import StoredLayer


class StoredBeside(LinearAttentionLayer, StoredLayer):  # type: ignore[misc]  # transformers combines them alike
    """A `StoredLayer` that also holds the recurrent state of the cache layer whose place it takes.

    The state is no key and no value: policies leave it alone, and it goes with the layer when a cache is reordered or
    reset.
    """

    def __init__(self, layer: Any) -> None:
        StoredLayer.__init__(self)
        for name, value in vars(layer).items():  # which attributes make up the state is for transformers to say
            if name not in ("keys", "values", "is_initialized"):
                setattr(self, name, value)

    def __copy__(self) -> StoredBeside:
        """A copy with states of its own: unlike keys and values they are written in place."""
        made = object.__new__(StoredBeside)
        made.__dict__.update(vars(self))
        made.conv_states, made.recurrent_states = copy.deepcopy((self.conv_states, self.recurrent_states))
        return made

    def lazy_initialization(self, *keys_values: Any, **states: Any) -> None:
        if keys_values:
            StoredLayer.lazy_initialization(self, *keys_values)
        else:
            LinearAttentionLayer.lazy_initialization(self, **states)

    def offload(self) -> None:
        StoredLayer.offload(self)
        LinearAttentionLayer.offload(self)

    def prefetch(self) -> None:
        StoredLayer.prefetch(self)
        LinearAttentionLayer.prefetch(self)

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        StoredLayer.reset(self)

    def reorder_cache(self, beam_idx: Any) -> None:
        LinearAttentionLayer.reorder_cache(self, beam_idx)
        StoredLayer.reorder_cache(self, beam_idx)

    def crop(self, tokens: int) -> None:
        LinearAttentionLayer.crop(self, tokens)
        StoredLayer.crop(self, tokens)


def stored_layer(layer: Any, latent: bool) -> StoredLayer | None:
    """A `StoredLayer` in the place of a cache layer that has seen nothing yet; None where none can stand in for it.

    latent: whether its model stores latents there.
    """
    made: dict[tuple[str, bool], Callable[[], StoredLayer]] = {
        ("full", False): StoredLayer,
        ("beside", False): lambda: StoredBeside(layer),
        ("full", True): StoredLatent,
        ("indexed", True): StoredIndexed,
    }
    stands_in = made.get((kind_of(layer), latent))
    return None if stands_in is None else stands_in()
