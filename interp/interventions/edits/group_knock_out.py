"""Knock out sinks, or the image tokens that are none: does anybody need them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from interp_kernels.group_reweighted_attention.rules import TEXT_SINK, VISUAL, VISUAL_SINK

from interp.errors import InterpError
from interp.interventions.edits._visual_sinks import VisualSinkEdit

Tensor = torch.Tensor
Group = Literal["visual_sinks", "visual_non_sinks", "text_sinks"]
NUMBERS: Mapping[Group, int] = {"visual_sinks": VISUAL_SINK, "visual_non_sinks": VISUAL, "text_sinks": TEXT_SINK}


@dataclass(frozen=True)
class GroupKnockOut(VisualSinkEdit):
    """Take the attention to visual sinks, to the other image tokens, or to text sinks away, in text after an image.

    Args:
        channels: the sink channels of the language model, as in `VAR`. Needed.
        tau_rel: how much of a token's length lies on them at least, for it to be a sink, as in `VAR`.
        group: which tokens; each layer has its own sinks.
        strength: what part of the attention goes; 1 removes it, 0 changes nothing.
        renormalise: scale the row back to the sum that it had, so that other tokens gain in proportion.

    Kang et al. (arXiv:2503.03321) find that a model does nearly as well without visual sinks and worse without as many
    random image tokens; those are `KnockOut(keys=...)`, and all of them `KnockOut(keys="images")`. To keep one group of
    an image's tokens alone is to knock out the other.

    Examples:
        >>> interp.GroupKnockOut(channels=(1415, 2533), group="visual_non_sinks").strength
        1.0
    """

    name: ClassVar[str] = "group_knock_out"
    idle_at: ClassVar[Mapping[str, Any]] = {"strength": 0.0}
    group: Group = "visual_sinks"
    strength: float = 1.0
    renormalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength <= 1:
            raise InterpError(f"{self.name}: strength should be 0 to 1, found {self.strength}.")

    @property
    def keeps_sums(self) -> bool:
        return self.renormalise

    def factors(self, masses: Tensor) -> Tensor:
        removed = NUMBERS[self.group]
        left = [1 - self.strength * (group == removed) for group in range(self.group_count)]
        return masses.new_tensor([[[left]]])
