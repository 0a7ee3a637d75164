"""Random eviction: the floor that any method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from interp.errors import InterpError
from interp.interventions.keeper import padding_of
from interp.interventions.policies._recent import RecentShare
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class RandomTokens(RecentShare):
    """Keep random tokens, others in every head and layer; the newest, and `sinks`, stay as in H2O. Evicts once.

    Texts of one length draw alike, in a batch as alone.

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
        batch, heads, tokens, _ = event.k.shape
        padding = padding_of(event.facts)
        draws = np.zeros((batch, heads, tokens), np.float32)
        for text, first in enumerate([0] * batch if padding is None else padding.tolist()):
            draw = np.random.default_rng((self.seed, layer))  # anew, so that a text draws what it draws alone
            draws[text, :, first:] = draw.random((heads, tokens - first), np.float32)
        return torch.from_numpy(draws).to(event.k.device)
