"""Attention knockout: what is lost when nobody may look at a token (Geva et al. 2023, arXiv:2304.14767)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from interp.errors import InterpError
from interp.interventions.edits.base import AttentionEdit, NewTokens, Numbers

if TYPE_CHECKING:
    from interp.seam.config import LensConfig

Tensor = torch.Tensor


@dataclass(frozen=True)
class KnockOut(AttentionEdit):
    """Take the attention to some tokens away, in some layers, heads and rows.

    Args:
        keys: positions of the tokens in their text, from 0; in a padded batch each text counts its own.
        queries: positions of the rows that are edited; None: all, those of generated tokens too.
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
    keys: Numbers = 0
    queries: Numbers | None = None
    strength: float = 1.0
    renormalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._as_tuples("keys", "queries")
        if not 0 <= self.strength <= 1:
            raise InterpError(f"{self.name}: strength should be 0 to 1, found {self.strength}.")

    @property
    def idle(self) -> bool:
        return self.strength == 0

    @property
    def keeps_sums(self) -> bool:
        return self.renormalise

    def check(self, cfg: LensConfig) -> None:
        super().check(cfg)
        if cfg.n_ctx and (beyond := self.unmet(cfg.n_ctx)):
            raise InterpError(f"{self.name}: {beyond}, the context of {cfg.architecture}.")

    def groups(self, text: NewTokens) -> Tensor:
        return _among(text, self.keys).long()

    def rows(self, text: NewTokens) -> Tensor:
        return super().rows(text) if self.queries is None else _among(text, self.queries)

    def factors(self, masses: Tensor) -> Tensor:
        return masses.new_tensor([1.0, 1.0 - self.strength]).expand_as(masses)

    def unmet(self, longest: int) -> str | None:
        named = [("keys", self.keys), ("queries", self.queries or ())]
        beyond = [f"{name} {n}" for name, given in named for n in given if n >= longest]  # type: ignore[union-attr]
        return f"{', '.join(beyond)} would lie beyond {longest:,} tokens" if beyond else None


def _among(text: NewTokens, positions: Numbers) -> Tensor:
    new = text.positions[:, -text.new :]
    return torch.isin(new, torch.tensor(positions, device=new.device))
