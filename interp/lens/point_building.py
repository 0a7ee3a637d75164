"""The hook points of a Lens, made from the parts of its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from interp.lens.offered import elsewhere, missing, points_of_attention
from interp.lens.parts import Anatomy, BlockParts, Stack
from interp.lens.readout import FinalNorm
from interp.lens.stacks import ENCODER, VISION
from interp.lens.strict_hooks import HookedLens, HookTree
from interp.lens.watching import named
from interp.seam import points as table


class PointsMixin(HookedLens):
    """Makes hook points: `blocks.{i}.…` for the main stack, the same under its prefix for any other."""

    blocks: nn.ModuleList
    ln_final: FinalNorm
    """Missing where the model has no final norm that could be found."""

    if TYPE_CHECKING:

        @property
        def anatomy(self) -> Anatomy: ...

    def why_absent(self, name: str) -> str | None:
        if (reason := super().why_absent(name)) is not None or name in self.hook_dict:
            return reason
        if name.startswith(VISION):
            return self.anatomy.unseen
        if not name.startswith(ENCODER) or self.anatomy.further:
            return None
        return "it has no encoder" if self.anatomy.decoder is None else "no seam reaches the attention of its encoder"

    def _build_points(self, parts: Anatomy) -> None:
        if parts.embeds_by_token:
            self._embed(self, parts.main, parts)
        else:
            self.absent["hook_embed"] = "its embedding puts out tokens before texts"
        self._fill(self, parts.main)
        for stack in parts.further:
            tree = HookTree()
            setattr(self, stack.prefix.removesuffix("."), tree)
            self._embed(tree, stack, parts)
            self._fill(tree, stack)
            if stack.projected is not None:
                tree.add_module("hook_projected", self._place(table.PROJECTED, f"{stack.prefix}hook_projected"))
            elif stack.prefix == VISION:
                self.absent[f"{stack.prefix}hook_projected"] = "what puts out its image tokens could not be found"

    def _embed(self, tree: Any, stack: Stack, parts: Anatomy) -> None:
        name = f"{stack.prefix}hook_embed"
        if stack.prefix == VISION:
            self.absent[name] = f"patches are no tokens of a vocabulary; hook {VISION}blocks.0.hook_resid_pre"
        elif stack.embedding is None:
            self.absent[name] = "the embedding of these tokens could not be found"
        elif sum(other.embedding is stack.embedding for other in parts.stacks) > 1:
            self.absent[name] = "one module embeds the tokens of encoder and decoder"
        else:
            tree.add_module("hook_embed", self._place(table.EMBED, name))

    def _fill(self, tree: Any, stack: Stack) -> None:
        tree.blocks = nn.ModuleList(self._block_room(stack.prefix, i, block) for i, block in enumerate(stack.blocks))
        self._say_what_stands_in_attentions_place(stack)
        if stack.final_norm is not None:
            tree.ln_final = norm = FinalNorm(stack.final_norm)
            norm.hook_normalized = self._place(table.FINAL, f"{stack.prefix}ln_final.hook_normalized")

    def _block_room(self, prefix: str, layer: int, block: BlockParts) -> HookTree:
        room = HookTree()
        for point in table.residual_points(attends=block.attention is not None, crosses=block.cross is not None):
            name = f"{prefix}blocks.{layer}.{point.name}"
            if (reason := elsewhere(point.name, block)) is not None:
                self.elsewhere[name] = reason
            elif (reason := missing(point.name, block)) is not None:
                self.absent[name] = reason
            else:
                room.add_module(point.name, self._place(point, name))
        if block.attention is not None:
            room.attn = self._attention_room(f"{prefix}blocks.{layer}.attn", block)
        if block.cross is not None:
            room.cross_attn = self._attention_room(f"{prefix}blocks.{layer}.cross_attn", block.cross)
        return room

    def _say_what_stands_in_attentions_place(self, stack: Stack) -> None:
        names = {name.split(".", 2)[2] for name in self.point_table if name.startswith("blocks.") and ".attn." in name}
        for layer, block in enumerate(stack.blocks):
            if block.attention is None and block.ran:
                reason = f"this block has {block.mixer} in attention's place, see hook_mixer_out"
                self.elsewhere |= {f"{stack.prefix}blocks.{layer}.{name}": reason for name in names | {"hook_attn_out"}}

    def _attention_room(self, at: str, block: BlockParts) -> HookTree:
        """The points of the attention whose names begin with `at`."""
        room = HookTree()
        for point, reason in points_of_attention(block):
            name = named(at, point)
            if reason is not None:
                self.absent[name] = reason
            else:
                room.add_module(point.name.removeprefix("attn."), self._place(point, name))
        return room
