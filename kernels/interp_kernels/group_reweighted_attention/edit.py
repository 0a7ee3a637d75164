"""The edit that is asked for: which group each key is in, and what decides the groups' factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import expect_float, expect_shape
from ..facts import Facts

Rule = Callable[[Tensor], Tensor]
"""From the masses [B, H, N, G] to the factors [B or 1, H or 1, N or 1, G]."""

MOST_GROUPS = 8


@dataclass(frozen=True)
class Edit:
    """An edit that was checked against one q, k and v."""

    groups: Tensor  # [B, H or 1, S], all in 0 .. count - 1
    count: int
    rule: Rule | Tensor
    rows: Tensor | None  # [B, H or 1, N]
    renormalise: bool
    form: str

    def factors(self, masses: Tensor) -> Tensor:
        """c [B, H, N, G], in the masses' dtype: what the rule says, and 1 in rows that stay as they are."""
        factors = self.rule if isinstance(self.rule, Tensor) else decided(self.rule, masses)
        factors = factors.to(masses.dtype).expand(masses.shape)
        return factors if self.rows is None else torch.where(self.rows[..., None], factors, 1.0)

    def members(self, dtype: torch.dtype) -> Tensor:
        """[B, H or 1, G, S]: 1 where the key is in the group, else 0."""
        every = torch.arange(self.count, device=self.groups.device)
        return (self.groups[:, :, None] == every[:, None]).to(dtype)


def decided(rule: Rule, masses: Tensor) -> Tensor:
    """The rule's answer, refused where it cannot be factors of these masses."""
    factors = rule(torch.where(masses > 0, masses, 0.0))  # a rule that divides by 0 has a gradient of NaN: it ends here
    if not isinstance(factors, Tensor):
        raise TypeError(f"group_reweighted_attention: rule should return a tensor, found {type(factors).__name__}.")
    batch, heads, queries, count = masses.shape
    sizes = {"B|1": (batch, 1), "H|1": (heads, 1), "N|1": (queries, 1), "G": (count,)}
    expect_float("group_reweighted_attention", **{"what rule returns": factors})
    expect_shape("group_reweighted_attention", "what rule returns", factors, "B|1 H|1 N|1 G", sizes)
    return factors


def checked_groups(operation: str, groups: Tensor, count: int | None, facts: Facts) -> tuple[Tensor, int]:
    """(groups as [B, H or 1, S] with padding in group 0, how many groups there are)."""
    batch, heads, _, keys = facts.shape
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise TypeError(f"{operation}: groups must be integers, found {groups.dtype}.")
    pattern = "B S" if groups.ndim == 2 else "B H|1 S"
    expect_shape(operation, "groups", groups, pattern, {"B": (batch,), "H|1": (heads, 1), "S": (keys,)})
    groups = groups if groups.ndim == 3 else groups[:, None]
    if facts.key_mask is not None:
        groups = groups.masked_fill(~facts.key_mask[:, None], 0)
    low, high = map(int, groups.aminmax()) if groups.numel() else (0, 0)
    if count is None:
        count = high + 1
    if not 1 <= count <= MOST_GROUPS:
        raise ValueError(f"{operation}: there should be 1 to {MOST_GROUPS} groups, found {count}.")
    if low < 0 or high >= count:
        raise ValueError(f"{operation}: groups should lie in 0 to {count - 1}, found {low} to {high}.")
    return groups, count
