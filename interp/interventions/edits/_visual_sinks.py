"""What edits of visual sinks share: which tokens are sinks, and the rows of text that have seen an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from interp_kernels.group_reweighted_attention.rules import OTHER, TEXT_SINK, VISUAL, VISUAL_SINK
from jaxtyping import Bool

from interp.errors import InterpError
from interp.interventions.edits.base import NewTokens, Numbers, PatternEdit, several
from interp.vision.sinks import sink_values

if TYPE_CHECKING:
    from interp.seam.config import LensConfig

Tensor = torch.Tensor
LLAVA = "(1415, 2533) in LLaVA-1.5-7B"


@dataclass(frozen=True)
class VisualSinkEdit(PatternEdit):
    """Sorts keys into text sinks, visual sinks, visual tokens that are no sinks, and all others.

    Sinks are found in each text and layer by itself, when a token of a prompt arrives. Generated tokens are never
    tested, and are others. The rows are those of text that has an image before it.
    """

    group_count: ClassVar[int] = 4
    channels: Numbers | None = None
    tau_rel: float = 0.3125

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels == ():
            raise InterpError(
                f"{self.name}: channels is empty, and without sink channels there are no sinks to take from; where "
                "interp.sink_channels finds none, the model has none."
            )
        self._as_tuples("channels")
        if not 0 < self.tau_rel <= 1:
            raise InterpError(f"{self.name}: tau_rel should be above 0 and at most 1, found {self.tau_rel}.")

    @property
    def reads_images(self) -> bool:
        return True

    @property
    def reads_residual(self) -> bool:
        return True

    def check(self, cfg: LensConfig) -> None:
        super().check(cfg)
        if self.channels is None:
            raise InterpError(
                f"{self.name}: channels are the model's sink channels, {LLAVA}; interp.sink_channels(lens) finds those "
                f"of {cfg.architecture}."
            )
        if missing := [str(channel) for channel in several(self.channels) if channel >= cfg.d_model]:
            raise InterpError(
                f"{self.name}: the residual stream of {cfg.architecture} has channels 0 to {cfg.d_model - 1}, found "
                f"{', '.join(missing)}."
            )

    def sinks(self, text: NewTokens) -> Bool[Tensor, "batch new"]:
        """Which of the new tokens are sinks; none of those that are generated."""
        assert text.residual is not None
        told = text.new - text.generated
        found = torch.zeros(len(text.ids), text.new, dtype=torch.bool, device=text.residual.device)
        if told:
            residual = text.residual[:, :told]
            phi = sink_values(residual, several(self.channels))
            found[:, :told] = self.exceeds(phi, self.tau_rel * residual.shape[-1] ** 0.5)
        return found & (text.positions[:, -text.new :] >= 0).to(found.device)

    def exceeds(self, phi: Tensor, tau: float) -> Bool[Tensor, "batch token"]:
        return phi >= tau

    def same_in_all_layers(self, text: NewTokens) -> bool:
        return text.generated == text.new

    def groups(self, text: NewTokens) -> Tensor:
        assert text.residual is not None
        if text.generated == text.new:
            return torch.full_like(text.ids[:, -text.new :], OTHER, device=text.residual.device)
        sinks = self.sinks(text)
        images = text.images[:, -text.new :].to(sinks.device)
        return torch.where(images, torch.where(sinks, VISUAL_SINK, VISUAL), torch.where(sinks, TEXT_SINK, OTHER))

    def rows(self, text: NewTokens) -> Tensor:
        """Text that has an image before it: what stands between two tiles of one image too."""
        images = text.images[:, -text.new :]
        before = text.images[:, : -text.new].any(-1, keepdim=True)
        return before.expand_as(images) if text.generated == text.new else (before | images.cumsum(-1).bool()) & ~images
