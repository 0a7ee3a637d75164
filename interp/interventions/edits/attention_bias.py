"""Attention bias: more or less attention to chosen tokens, as attention steering gives it (Zhang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from interp.errors import InterpError
from interp.interventions.edits.base import LogitChange, LogitEdit, NewTokens, Tokens, at_positions, beyond

Tensor = torch.Tensor
MOST = 1000.0


@dataclass(frozen=True)
class AttentionBias(LogitEdit):
    """Add a bias to the logits of some tokens, in some layers, heads and rows, or put a logit in their place.

    Args:
        keys: positions of the tokens in their text, from 0; in a padded batch each text counts its own. "images" are
            all tokens that stand for images, "text" all others.
        bias: in nats, -1,000 to 1,000: with 1 a token weighs e times as much against the others. 0 changes nothing,
            where it is added.
        queries: positions of the rows that are edited, or "images" or "text"; None: all, those of generated tokens too.
        mode: "add" the bias to the logits, or "set" them to it.

    PASTA (Zhang et al. 2024, arXiv:2311.02262) steers attention to a part of the prompt: in chosen heads it multiplies
    the attention to all other tokens by alpha (0.01) and scales rows back to their sum. That is log(alpha) added to the
    logits of the others or, as only differences count, -log(alpha) added to those of the part that is emphasised:
    `AttentionBias(keys=part, bias=4.6, heads=...)`.

    PAI (Liu et al. 2024, arXiv:2407.21771) adds alpha times |logit| to the logits of image tokens, in each step's
    newest row. `AttentionBias(keys="images", bias=..., queries="text")` raises them too, all by the same and in all
    rows of text: it changes no proportions among image tokens, where PAI favours those whose logits are far from 0.
    PAI's contrast with the logits of a prompt without its image is another method, and no part of this.

    Learned sink logits (gpt-oss) stay as they are, so there the two differ: what a bias gives to tokens is taken from
    the sink too. Whatever the bias, it makes no row see what its mask hides; and to take attention away altogether is
    `KnockOut`'s business. Under a cache policy a stored token answers to the position that it is stored under.

    Examples:
        >>> with lens.apply(interp.AttentionBias(keys=3, bias=4.6, layers=2)):
        ...     _, cache = lens.run_with_cache(prompt, names_filter="blocks.2.attn.hook_column_mass")
        >>> _, plain = lens.run_with_cache(prompt, names_filter="blocks.2.attn.hook_column_mass")
        >>> bool((cache["column_mass", 2][..., 3] > plain["column_mass", 2][..., 3]).all())
        True
    """

    name: ClassVar[str] = "attention_bias"
    group_count: ClassVar[int] = 2
    idle_at: ClassVar[Mapping[str, Any]] = {"mode": "add", "bias": 0.0}
    keys: Tokens = 0
    bias: float = 1.0
    queries: Tokens | None = None
    mode: Literal["add", "set"] = "add"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._as_tuples("keys", "queries")
        if abs(self.bias) > MOST:
            raise InterpError(
                f"{self.name}: bias should be {-MOST:,.0f} to {MOST:,.0f} nats, found {self.bias}; KnockOut takes all "
                "attention away."
            )

    def same_in_all_layers(self, text: NewTokens) -> bool:
        return True

    def groups(self, text: NewTokens) -> Tensor:
        return at_positions(text, self.keys).long()

    def rows(self, text: NewTokens) -> Tensor:
        return super().rows(text) if self.queries is None else at_positions(text, self.queries)

    def change(self, positions: Tensor) -> LogitChange:
        return LogitChange(scale=(1.0, 1.0 if self.mode == "add" else 0.0), bias=(0.0, self.bias))

    def unmet(self, longest: int) -> str | None:
        return beyond(longest, keys=self.keys, queries=self.queries)
