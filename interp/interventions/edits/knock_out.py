"""Attention knockout: what is lost when nobody may look at a token (Geva et al. 2023, arXiv:2304.14767)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from interp.errors import InterpError
from interp.interventions.edits.base import NewTokens, PatternEdit, Tokens, at_positions, beyond

Tensor = torch.Tensor


@dataclass(frozen=True)
class KnockOut(PatternEdit):
    """Take the attention to some tokens away, in some layers, heads and rows.

    Args:
        keys: positions of the tokens in their text, from 0; in a padded batch each text counts its own. "images" are
            all tokens that stand for images, "text" all others.
        queries: positions of the rows that are edited, or "images" or "text"; None: all, those of generated tokens too.
        strength: what part of the attention goes; 1 removes it, 0 changes nothing.
        renormalise: scale the row back to the sum that it had, so that other tokens gain in proportion. False leaves a
            hole. A row that saw nothing else is zero either way.

    With strength 1 and renormalised rows this is the paper's edit, which sets scores to -inf before the softmax, except
    in models with learned sink logits: there the sink keeps its share of the row instead of taking part of what was
    removed. Under a cache policy a stored token answers to the position that it is stored under: what was merged into
    another is knocked out with that one, and a summary token of `Recall` stands at the mean of what it sums up.

    Examples:
        >>> with lens.apply(interp.KnockOut(keys=(0, 1), layers=2)):
        ...     _, cache = lens.run_with_cache(prompt, names_filter="blocks.2.attn.hook_pattern")
        >>> float(cache["pattern", 2][..., 2:, :2].sum())
        0.0
    """

    name: ClassVar[str] = "knock_out"
    group_count: ClassVar[int] = 2
    idle_at: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    keys: Tokens = 0
    queries: Tokens | None = None
    strength: float = 1.0
    renormalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._as_tuples("keys", "queries")
        if not 0 <= self.strength <= 1:
            raise InterpError(f"{self.name}: strength should be 0 to 1, found {self.strength}.")

    @property
    def keeps_sums(self) -> bool:
        return self.renormalise

    def same_in_all_layers(self, text: NewTokens) -> bool:
        return True

    def groups(self, text: NewTokens) -> Tensor:
        return at_positions(text, self.keys).long()

    def rows(self, text: NewTokens) -> Tensor:
        return super().rows(text) if self.queries is None else at_positions(text, self.queries)

    def factors(self, masses: Tensor) -> Tensor:
        return masses.new_tensor([[[[1.0, 1.0 - self.strength]]]])

    def unmet(self, longest: int) -> str | None:
        return beyond(longest, keys=self.keys, queries=self.queries)
