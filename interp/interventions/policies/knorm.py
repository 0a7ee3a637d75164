"""Knorm: tokens with small keys stay (Devoto et al., EMNLP 2024, arXiv:2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.errors import InterpError
from interp.interventions.policies._eviction import Eviction
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class Knorm(Eviction):
    """Keep the tokens whose keys have the smallest L2 norm, without looking at any query; evicts once.

    Args:
        recent: newest tokens that always stay (the paper protects none).

    Examples:
        >>> with lens.apply(interp.Knorm(budget=0.5)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [23]
    """

    name: ClassVar[str] = "knorm"
    recent: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent < 0:
            raise InterpError(f"knorm: recent should be at least 0, found {self.recent}.")

    def recent_tokens(self, capacity: int) -> int:
        return self.recent

    @property
    def queries_needed(self) -> int:
        return 0

    def scores(self, layer: int, event: AttentionEvent) -> Tensor:
        norms: Tensor = event.k.float().norm(dim=-1)
        return -norms
