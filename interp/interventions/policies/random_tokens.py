"""Random eviction: the floor that any method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from interp.errors import InterpError
from interp.interventions.policies._recent import RecentShare
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class RandomTokens(RecentShare):
    """Keep random tokens, others in every head and layer; the newest, and `sinks`, stay as in H2O. Evicts once.

    Args:
        recent_share: the part of the budget that goes to the newest tokens.
        seed: of the draw.

    Examples:
        >>> with lens.apply(interp.RandomTokens(budget=0.5, seed=1)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [23]
    """

    name: ClassVar[str] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise InterpError(f"random: seed should be at least 0, found {self.seed}.")

    @property
    def queries_needed(self) -> int:
        return 0

    def scores(self, layer: int, event: AttentionEvent) -> Tensor:
        draw = np.random.default_rng((self.seed, layer)).random(event.k.shape[:3], np.float32)
        return torch.from_numpy(draw).to(event.k.device)
