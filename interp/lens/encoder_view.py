"""A Lens as probes see it: of an encoder-decoder the encoder, which is what reads the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from interp.errors import InterpError
from interp.lens.anatomy import config_of_stack
from interp.lens.parts import Anatomy
from interp.lens.stacks import ENCODER

if TYPE_CHECKING:
    from interp.lens.protocol import TextLens
    from interp.lens.strict_hooks import Hooks
    from interp.seam.config import LensConfig


class EncoderView:
    """The encoder of a Lens, whose blocks are `blocks.{i}` here. The rest is the Lens' own."""

    def __init__(self, lens: TextLens) -> None:
        self._lens = lens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lens, name)

    @property
    def anatomy(self) -> Anatomy:
        whole = self._lens.anatomy
        stack = whole.further[0]
        return replace(
            whole, blocks=stack.blocks, final_norm=stack.final_norm, embedding=stack.embedding, unembed=None, further=()
        )

    @property
    def cfg(self) -> LensConfig:
        return config_of_stack(self._lens.cfg, self._lens.anatomy.further[0])

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        return _of_encoder(self._lens.hook_dict)

    @property
    def absent(self) -> Mapping[str, str]:
        return _of_encoder(self._lens.absent)

    def run_with_hooks(self, *args: Any, fwd_hooks: Hooks = (), **kwargs: Any) -> Any:
        """As of the Lens, with the encoder's names; the decoder reads its start token alone."""
        return self._lens.run_with_hooks(
            *args, fwd_hooks=[(f"{ENCODER}{name}", hook) for name, hook in fwd_hooks], **kwargs
        )


def reading_text(lens: TextLens) -> TextLens:
    """What of a lens reads the text: itself, or its encoder.

    Raises InterpError where that cannot be looked at: no seam reaches it, or edits are in force, which act elsewhere.
    """
    anatomy = lens.anatomy
    if anatomy.decoder is None:
        return lens
    if not anatomy.further:
        raise InterpError(
            f"the encoder of {lens.cfg.architecture}, which reads the text, attends in a way that no seam reaches; "
            "hook the decoder (lens.run_with_cache) instead."
        )
    if lens.edits_in_force:
        names = " and ".join(dict.fromkeys(edit.name for edit in lens.edits_in_force))
        raise InterpError(f"probes look at the encoder, and {names} acts in the decoder; probe outside of apply().")
    return cast("TextLens", EncoderView(lens))


def _of_encoder(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(ENCODER): held for name, held in named.items() if name.startswith(ENCODER)}
