"""VAR: attention that sinks absorb goes to the image instead (Kang et al. 2025, arXiv:2503.03321)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from interp_kernels import visual_redistribution
from jaxtyping import Bool

from interp.errors import InterpError
from interp.interventions.edits._visual_sinks import VisualSinkEdit

Tensor = torch.Tensor


@dataclass(frozen=True)
class VAR(VisualSinkEdit):
    """Visual attention redistribution: in heads that look at the image, what sinks receive goes to its other tokens.

    Args:
        channels: the sink channels of the language model, (1415, 2533) in LLaVA-1.5-7B, (2100, 4743) in its 13B;
            `interp.sink_channels(lens)` finds those of other models. Needed.
        tau_rel: a token is a sink of a layer where phi, its largest |x| on these channels over the root mean square of
            all of its channels, is at least tau_rel times sqrt(d_model). The paper's tau of 20 is 0.3125 at a width of
            4,096, and could never be reached at one below 400.
        min_visual_mass: the least attention that a row of a head pays to the image, for it to be edited.
        min_nonsink_ratio: and the part of that which should lie on tokens that are no sinks, above 0; None is 0.8, the
            paper's choice in general (0.5 against hallucination, 0.9 for vision-centric questions), or 0.5 with "code".
        remove_fraction: the part that sinks lose; None is 0.6, and 0.4 with "code". 0 changes nothing.
        layers: numbers of the layers that are edited; None: all but the last, and with "code" all from the third on.
        give_to: who gains what sinks of the text and of the image lose: "images" is the method, tokens of the image
            that are no sinks; "text", tokens of the text that are none, is the paper's ablation that hurts; "both"
            gives to all of them in proportion.
        variant: "paper", or "code" for what the released code does with the first question that it is asked.

    Rows are those of text with an image before it, and of all that is generated; what stands between the tiles of an
    image counts as text too. Sinks are found in every layer and text when a token of the prompt is read; generated
    tokens are never tested. In a layer with a sliding window a row that sees no visual sink any more is left alone.

    The paper's definitions are the default, since the released code turns two of them round: its `p` is the part that
    sinks keep and its `rho` the most that may lie on them, so that its 0.6 and 0.5 are a `remove_fraction` of 0.4 and a
    `min_nonsink_ratio` of 0.5. With "code" these are the defaults, phi has to exceed the threshold, the first two
    layers are left out, and the last one is edited although the code's settings say otherwise. Left out is that the
    code adds 1e-6 for each image token to the mass that it divides by, which moves the ratio by less than 0.3 % with
    576 of them, and that from the second question on it takes the first one's sinks.

    Examples:
        >>> interp.VAR(channels=(1415, 2533), remove_fraction=0.5).min_visual_mass
        0.2
    """

    name: ClassVar[str] = "var"
    idle_at: ClassVar[Mapping[str, Any]] = {"remove_fraction": 0.0}
    min_visual_mass: float = 0.2
    min_nonsink_ratio: float | None = None
    remove_fraction: float | None = None
    give_to: Literal["images", "text", "both"] = "images"
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_nonsink_ratio is not None and not 0 < self.min_nonsink_ratio <= 1:
            raise InterpError(
                f"{self.name}: min_nonsink_ratio should be above 0, for a row without such tokens has nowhere to put "
                f"what sinks lose, and at most 1, found {self.min_nonsink_ratio}."
            )
        if self.remove_fraction is not None and not 0 <= self.remove_fraction <= 1:
            raise InterpError(f"{self.name}: remove_fraction should be 0 to 1, found {self.remove_fraction}.")
        if not 0 <= self.min_visual_mass <= 1:
            raise InterpError(f"{self.name}: min_visual_mass should be 0 to 1, found {self.min_visual_mass}.")

    @property
    def keeps_sums(self) -> bool:
        """Its factors do that already."""
        return False

    def acts_in(self, layer: int, depth: int) -> bool:
        if self.layers is not None:
            return super().acts_in(layer, depth)
        return layer >= 2 if self.variant == "code" else layer < depth - 1

    def exceeds(self, phi: Tensor, tau: float) -> Bool[Tensor, "batch token"]:
        return phi > tau if self.variant == "code" else phi >= tau

    def factors(self, masses: Tensor) -> Tensor:
        removed, ratio = (0.4, 0.5) if self.variant == "code" else (0.6, 0.8)
        return visual_redistribution(
            removed if self.remove_fraction is None else self.remove_fraction,
            ratio if self.min_nonsink_ratio is None else self.min_nonsink_ratio,
            self.min_visual_mass,
            self.give_to,
        )(masses)
