"""Sink removal (ours): attention that sinks absorb goes to the tokens that a row reads besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool

from interp.errors import InterpError
from interp.interventions.edits.base import NewTokens, PatternEdit

Tensor = torch.Tensor


@dataclass(frozen=True)
class SinkRemoval(PatternEdit):
    """Take from the attention sinks of a text a part of what they receive; other keys gain it in proportion.

    Args:
        remove_fraction: the part that sinks lose in every row; 0 changes nothing, 1 leaves them nothing. A row that
            sees nothing but sinks stays as it is.
        sinks: "first", the text's first token; "massive", tokens with a massive activation in the residual stream that
            enters the layer, so that each layer has its own; "both", either.
        over_median: how many times the median |x| of its own channels a token's largest |x| has to exceed.

    Massive activations are those of Sun et al. 2024 (arXiv:2402.17762), |x| above 1,000 times the layer's median and
    above 100. Here the median is the token's own, so that a token is judged when it is read, by itself: a text in
    pieces has the sinks that it has in one, and no second pass is needed. On the demo model 250 tells them apart
    (others reach at most 243 on 300 tokens of technical English), and what it finds are the tokens that attention goes
    to; none reaches 1,000. Generated tokens are judged too.

    Redistribution from sinks is VAR's (Kang et al. 2025, arXiv:2503.03321), which gives to image tokens alone and only
    in rows that look at the image; here every row and every other key takes part.

    Examples:
        >>> with lens.apply(interp.SinkRemoval(remove_fraction=1.0, sinks="first")):
        ...     _, cache = lens.run_with_cache(prompt, names_filter="blocks.2.attn.hook_pattern")
        >>> float(cache["pattern", 2][..., 1:, 0].sum())
        0.0
    """

    name: ClassVar[str] = "sink_removal"
    group_count: ClassVar[int] = 2
    idle_at: ClassVar[Mapping[str, Any]] = {"remove_fraction": 0.0}
    remove_fraction: float = 0.6
    sinks: Literal["first", "massive", "both"] = "both"
    over_median: float = 250.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.remove_fraction <= 1:
            raise InterpError(f"{self.name}: remove_fraction should be 0 to 1, found {self.remove_fraction}.")
        if self.over_median < 1:
            raise InterpError(f"{self.name}: over_median should be at least 1, found {self.over_median}.")

    @property
    def reads_residual(self) -> bool:
        return self.sinks != "first"

    @property
    def keeps_sums(self) -> bool:
        """Its factors do that already."""
        return False

    def same_in_all_layers(self, text: NewTokens) -> bool:
        return self.sinks == "first"

    def groups(self, text: NewTokens) -> Tensor:
        first = text.positions[:, -text.new :] == 0
        if self.sinks == "first":
            return first.long()
        assert text.residual is not None
        massive = massive_tokens(text.residual, self.over_median)
        return (massive if self.sinks == "massive" else massive | first).long()

    def factors(self, masses: Tensor) -> Tensor:
        others, sinks = masses.unbind(-1)
        taken = torch.where(others > 0, self.remove_fraction, 0.0)
        gain = taken * sinks / torch.where(others > 0, others, 1.0)
        return torch.stack([1 + gain, 1 - taken], -1)


def massive_tokens(residual: Tensor, over_median: float) -> Bool[Tensor, "batch token"]:
    """Tokens of `residual [batch, token, d_model]` whose largest |x| exceeds so many times the median of their |x|."""
    size = residual.detach().float().abs()
    return size.amax(-1) > over_median * size.median(-1).values
