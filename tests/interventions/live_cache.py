"""What tests of a live cache need: the smallest token policy, and short ways to read a prompt under a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from interp.interventions import CachePolicy, Plan, Prompt, parts
from tests.models import tokens


@dataclass(frozen=True)
class Newest(CachePolicy):
    """Keep the newest tokens of the prompt: as little as a token policy can be."""

    name: ClassVar[str] = "newest"
    stage: ClassVar = "tokens"
    count: int = 10

    def begin(self, prompt: Prompt) -> Plan:
        plan = _NewestPlan()
        plan.count = self.count
        return plan


class _NewestPlan(Plan):
    count: int

    def compress(self, layer: int, stored: Any) -> None:
        stored.keep(recent=min(self.count, stored.kept))


def name_of(policy: Any) -> str:
    """Short ids of test cases."""
    return "|".join(f"{member.name}{getattr(member, 'recent', '')}" for member in parts(policy))


def prefill(lens: Any, policy: Any, ids: torch.Tensor, **kwargs: Any) -> Any:
    with lens.apply(policy):
        lens(ids, use_cache=True, **kwargs)
    return lens.last_cache


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def left_padded(length: int = 30, n: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    ids = tokens(length=length)
    mask = torch.ones_like(ids)
    mask[1, :n] = 0
    return ids.masked_fill(mask == 0, 2), mask
