"""StreamingLLM: attention sinks and the newest tokens (Xiao et al., ICLR 2024, arXiv:2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.interventions.policies._eviction import Eviction
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class StreamingLLM(Eviction):
    """Keep the first `sinks` tokens and the newest of the prompt, `budget` in all; evicts once, after the prompt.

    Args:
        sinks: tokens at the text's beginning that stay.

    Differs from the release: kept keys stay at their true positions instead of being rotated to contiguous ones, and
    generated tokens are added without dropping old ones.

    Examples:
        >>> with lens.apply(interp.StreamingLLM(budget=0.5)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [23]
    """

    name: ClassVar[str] = "streaming_llm"
    sinks: int = 4

    def recent_tokens(self, capacity: int) -> int:
        return max(0, capacity - self.sinks)

    @property
    def queries_needed(self) -> int:
        return 0

    def scores(self, layer: int, event: AttentionEvent) -> Tensor:
        batch, heads, tokens, _ = event.k.shape
        return torch.zeros(batch, heads, tokens, device=event.k.device)
