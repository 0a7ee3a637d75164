"""PyramidKV: SnapKV with more room in the lower layers (Cai et al. 2024, arXiv:2406.02069)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interp.errors import InterpError
from interp.interventions._eviction import tokens_of
from interp.interventions.base import Prompt
from interp.interventions.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Budgets fall linearly from the first layer to the last; their mean is `budget`. Scores are SnapKV's.

    Without the window W, the last layer keeps (budget - W) / beta and the first 2 (budget - W) minus that. A layer
    never keeps more than the prompt, and what it cannot use goes to no other layer, as in KVCache-Factory.
    """

    name: ClassVar[str] = "pyramidkv"
    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise InterpError(f"pyramidkv: beta should be at least 1, found {self.beta}.")

    def capacity(self, prompt: Prompt, layer: int) -> int:
        free = tokens_of(self.budget, prompt.tokens) - self.window  # below 0, `check` refuses
        least, steps = free / self.beta, max(1, len(prompt.layers) - 1)
        most = 2 * free - least
        share = prompt.layers.index(layer) / steps if len(prompt.layers) > 1 else 0.5
        return self.window + round(most + (least - most) * share)
