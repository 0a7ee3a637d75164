"""H2O: tokens that have received the most attention stay (Zhang et al., NeurIPS 2023, arXiv:2306.14048).

Three methods go by that name, and they are kept apart here: `H2O` goes on counting and evicting at every step, as the
paper does; `H2OPrefill` counts over the whole prompt and evicts once (as KVCache-Factory's H2O does); `H2OWindow`
counts over the last queries only, which is SnapKV without pooling (what ThinK's repository calls H2O).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from interp.errors import InterpError
from interp.interventions.base import Plan, Prompt
from interp.interventions.policies._recent import RecentShare
from interp.interventions.policies._steps import StepPlan
from interp.interventions.policies._window import window_mass
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class _HeavyHitters(RecentShare):
    """What the three share.

    Args:
        recent_share: the part of the budget that goes to the newest tokens (paper: half).
    """

    def scores(self, layer: int, event: AttentionEvent) -> Tensor:
        return event.column_mass


@dataclass(frozen=True)
class H2OPrefill(_HeavyHitters):
    """Attention received from all queries of the prompt, summed over the group's heads; one eviction after the prompt.

    Source: KVCache-Factory's H2O, which evicts per query head after repeating keys; here per key/value head.

    Examples:
        >>> with lens.apply(interp.H2OPrefill(budget=0.5)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [23]
    """

    name: ClassVar[str] = "h2o_prefill"


@dataclass(frozen=True)
class H2O(_HeavyHitters):
    """Attention received from all queries so far, in the prompt and while generating; the cache keeps its size.

    After the prompt the cache is cut to the budget, or grows up to a whole number that is larger; from then on, with
    every new token, the least attended old token goes. A budget of 1.0 keeps all, what follows the prompt too.

    Source: paper, algorithm 1; here per key/value head, summed over the group.

    Examples:
        >>> with lens.apply(interp.H2O(budget=0.5)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [20]
    """

    name: ClassVar[str] = "h2o"

    def begin(self, prompt: Prompt) -> Plan:
        return StepPlan(self, prompt)


@dataclass(frozen=True)
class H2OWindow(_HeavyHitters):
    """Attention received from the last `window` queries of the prompt; one eviction after the prompt.

    Args:
        window: queries at the prompt's end that count; of a shorter prompt, all of them.

    Source: `h2o` in SalesforceAIResearch/ThinK, where the recent tokens are the window itself.

    Examples:
        >>> with lens.apply(interp.H2OWindow(budget=0.5, window=8)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [23]
    """

    name: ClassVar[str] = "h2o_window"
    window: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise InterpError(f"h2o_window: window should be at least 1, found {self.window}.")

    @property
    def queries_needed(self) -> int:
        return self.window

    def scores(self, layer: int, event: AttentionEvent) -> Tensor:
        return window_mass(event, self.window)
