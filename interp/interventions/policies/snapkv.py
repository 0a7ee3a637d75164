"""SnapKV: the last queries of the prompt choose what the answer will need (Li et al. 2024, arXiv:2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from interp.errors import InterpError
from interp.interventions.policies._eviction import Eviction
from interp.interventions.policies._window import window_mass
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class SnapKV(Eviction):
    """Keep what the last `window` queries attend to, smoothed along the text, and the window itself.

    A token's score is the attention it receives from the window, summed over queries and the group's heads, after a 1-D
    pooling over neighbours so that what stands together stays together. Evicts once, after the prompt.

    Args:
        window: queries that judge, of a shorter prompt all of them; their own tokens always stay.
        kernel: width of the pooling, odd; 1 is none.
        pool: "max" or "avg".

    Source: as run by ThinK and KVCache-Factory (window 32, max-pooling over 7); kvpress takes window 64, kernel 5. Here
    the heads of a group vote before the pooling, because the cache holds one set of tokens a key/value head.

    Examples:
        >>> with lens.apply(interp.SnapKV(budget=0.5, window=8)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [23]
    """

    name: ClassVar[str] = "snapkv"
    window: int = 32
    kernel: int = 7
    pool: Literal["max", "avg"] = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise InterpError(f"{self.name}: window should be at least 1, and kernel odd.")

    def recent_tokens(self, capacity: int) -> int:
        return self.window

    @property
    def queries_needed(self) -> int:
        return self.window

    def scores(self, layer: int, event: AttentionEvent) -> Tensor:
        window = min(self.window, event.q.shape[2])
        mass = window_mass(event, window)
        mass = torch.unflatten(mass, 1, (event.k.shape[1], -1)).sum(2)
        before = mass[..., : mass.shape[-1] - window]  # the window's own tokens stay anyway
        if before.shape[-1] == 0:
            return mass
        pooling = torch.nn.functional.max_pool1d if self.pool == "max" else torch.nn.functional.avg_pool1d
        smoothed: Tensor = pooling(before, self.kernel, 1, self.kernel // 2)
        return torch.cat([smoothed, mass[..., before.shape[-1] :]], -1)
