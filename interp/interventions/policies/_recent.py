"""Evictions that keep a share of their budget for the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass

from interp.errors import InterpError
from interp.interventions.policies._eviction import Eviction


@dataclass(frozen=True)
class RecentShare(Eviction):
    """An eviction that always keeps some of the newest tokens, as many as a share of its budget.

    Args:
        recent_share: the part of the budget that goes to the newest tokens.
    """

    recent_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent_share < 1:
            raise InterpError(f"{self.name}: recent_share should be at least 0 and below 1, found {self.recent_share}.")

    def recent_tokens(self, capacity: int) -> int:
        return int(capacity * self.recent_share)
