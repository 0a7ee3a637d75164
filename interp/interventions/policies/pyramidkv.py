"""PyramidKV: SnapKV with more room in the lower layers (Cai et al. 2024, arXiv:2406.02069)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interp.errors import InterpError
from interp.interventions.base import Prompt
from interp.interventions.policies._eviction import tokens_of
from interp.interventions.policies.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Budgets fall in equal steps from the first layer to the last; their mean is `budget`. Scores are SnapKV's.

    Args:
        beta: how steeply budgets fall; the last layer keeps (budget - W) / beta besides the window.

    Without the window W, the last layer keeps (budget - W) / beta and the first 2 (budget - W) minus that. No layer
    keeps more than the prompt, and what the first layers cannot use goes to the last. Source: KVCache-Factory, whose
    whole-number steps are kept; they leave the mean a little above `budget`.

    Examples:
        >>> with lens.apply(interp.PyramidKV(budget=0.5, window=4)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [7, 23, 39]
    """

    name: ClassVar[str] = "pyramidkv"
    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise InterpError(f"pyramidkv: beta should be at least 1, found {self.beta}.")

    def capacity(self, prompt: Prompt, layer: int) -> int:
        free = tokens_of(self.budget, prompt.tokens) - self.window
        least = int(free / self.beta)
        most = 2 * free - least
        if most > prompt.tokens - self.window:
            most = prompt.tokens - self.window
            least = 2 * free - most
        if least >= most or len(prompt.layers) == 1:
            return self.window + free
        step = (most - least) // (len(prompt.layers) - 1)
        return self.window + most - step * prompt.layers.index(layer)
