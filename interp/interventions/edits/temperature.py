"""Softmax temperature: how sharply attention chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from interp.errors import InterpError
from interp.interventions.edits.base import LogitChange, LogitEdit, NewTokens, Tokens, at_positions, beyond

Tensor = torch.Tensor
LOWEST = 1e-3


@dataclass(frozen=True)
class Temperature(LogitEdit):
    """Divide the logits by a temperature, in some layers, heads and rows: softmax(logits / temperature).

    Args:
        temperature: above 1 attention spreads, below 1 it gathers on the highest logits; 1 changes nothing. At least
            0.001, where the highest logit takes all as good as always.
        queries: positions of the rows that are edited, or "images" or "text", those of tokens that stand for images or
            of all others; None: all, those of generated tokens too.

    A temperature belongs to the softmax as a whole. So all logits that enter it are divided, the learned sink's of
    gpt-oss too: a sink that kept its logit would take or lose attention merely because the others moved. A softcap
    (Gemma 2) comes before the division, and bounds the logits to its own number over the temperature.

    Examples:
        >>> with lens.apply(interp.Temperature(temperature=2.0, layers=2)):
        ...     _, cache = lens.run_with_cache(prompt, names_filter="blocks.2.attn.hook_row_entropy")
        >>> _, plain = lens.run_with_cache(prompt, names_filter="blocks.2.attn.hook_row_entropy")
        >>> bool((cache["row_entropy", 2].mean() > plain["row_entropy", 2].mean()))
        True
    """

    name: ClassVar[str] = "temperature"
    group_count: ClassVar[int] = 1
    idle_at: ClassVar[Mapping[str, Any]] = {"temperature": 1.0}
    temperature: float = 2.0
    queries: Tokens | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._as_tuples("queries")
        if self.temperature < LOWEST:
            raise InterpError(f"{self.name}: temperature should be at least {LOWEST}, found {self.temperature}.")

    def same_in_all_layers(self, text: NewTokens) -> bool:
        return True

    def groups(self, text: NewTokens) -> Tensor:
        return torch.zeros_like(text.positions[:, -text.new :])

    def rows(self, text: NewTokens) -> Tensor:
        return super().rows(text) if self.queries is None else at_positions(text, self.queries)

    def change(self, positions: Tensor) -> LogitChange:
        return LogitChange(scale=1 / self.temperature, sink_scale=1 / self.temperature)

    def unmet(self, longest: int) -> str | None:
        return beyond(longest, queries=self.queries)
