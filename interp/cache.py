"""The key/value cache that a Lens hands to the model.

Keys and values pass through `Cache.update` once, when they are new: that is where `hook_rot_k` (or `hook_k`) and
`hook_v` fire, so that what a hook returns is what gets stored and every later step attends to it. A cache from
elsewhere has no such seam: hooks on it may read, and an edit is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

NewKeysValues = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class LensCache(DynamicCache):
    """transformers' dynamic cache (sliding layers where the config has them) that lets hooks see new keys and values.

    `listener` is set by the Lens for the time of a call and called as `listener(layer, keys, values)` with tensors
    `[batch, kv_head, new, d_head]`; between calls it is None, so a cache can be copied, kept and passed on freely.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.listener: NewKeysValues | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.listener is not None:
            key_states, value_states = self.listener(layer_idx, key_states, value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def nbytes(self) -> int:
        """Bytes held by the cache: the sum over distinct storages, so a view is not counted twice and slack is not
        hidden."""
        held = [t for layer in self.layers for t in (layer.keys, layer.values) if isinstance(t, torch.Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held if t.numel()}.values())
