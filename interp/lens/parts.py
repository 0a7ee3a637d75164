"""The parts of a model, as a Lens holds them: blocks in order of depth, in one stack or several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from interp.lens.head import Step
from interp.lens.writers import Writers
from interp.seam.rotation import Rotation


@dataclass(frozen=True)
class BlockParts:
    """One decoder layer: where its attention is and what writes to the residual stream."""

    block: nn.Module
    attention: nn.Module | None
    """None in a block that has another mixer."""
    attention_name: str
    out_projection: nn.Module | None
    """Maps the flattened head outputs z to what attention returns; None where it is not a direct child."""
    attn_out: nn.Module | None
    """The child whose output, times `residual_scale`, attention adds to the residual stream."""
    mlp_out: nn.Module | None
    residual_scale: float
    rotation: Rotation | str
    """How to rotate keys back, or why that cannot be done."""
    seen: dict[str, Any] = field(default_factory=dict)
    """Facts from the two-token run: n_heads, n_key_value_heads, d_head, keywords of the attention call."""
    writers: Writers = field(default_factory=Writers)
    middle: nn.Module | None = None
    """The norm whose output is resid_mid, where norms follow sums."""
    mixer: str = "attention"
    """What mixes tokens here, for people: attention, or the class of what stands in its place."""
    ran: bool = True
    """False for a block that text alone does not pass (cross-attention to an image)."""
    gated: bool = False
    """Whether what the output projection reads is z times a gate."""
    overwritten: tuple[nn.Module, ...] = ()
    """Those that write to the residual stream whose output the model changes in place (Falcon adds attention's to the
    MLP's), so that what hooks see must be a copy."""
    heads_written: bool = True
    """Whether what the output projection puts out reaches the residual stream through `attn_out` alone, so that it can
    be told what each head adds."""
    seam: Literal["registry", "sdpa", "softmax"] = "registry"
    """How its attention is reached: through transformers' registry, or where its own code calls SDPA or softmax."""
    whole: bool = False
    """Whether it attends to the encoder's tokens, alone or (T5Gemma 2) behind its own."""
    cross: BlockParts | None = None
    """The same block with its other attention in it, the one to the encoder's tokens."""
    cross_out: nn.Module | None = None
    """The child whose output, times its scale, cross-attention adds to the residual stream."""
    middle2: nn.Module | None = None
    """The norm whose output is resid_mid2, where norms follow sums."""


@dataclass(frozen=True)
class Stack:
    """A list of blocks that hand on one stream, with what stands before the names of its points: an encoder."""

    prefix: str
    blocks: tuple[BlockParts, ...]
    embedding: nn.Module | None = None
    """What makes vectors of its tokens."""
    final_norm: nn.Module | None = None
    projected: nn.Module | None = None
    """What puts a tower's patches out as the language model reads them."""

    @property
    def attending(self) -> Iterator[tuple[int, BlockParts]]:
        """The blocks that have attention, with their numbers."""
        return ((i, block) for i, block in enumerate(self.blocks) if block.attention is not None)


@dataclass(frozen=True)
class Anatomy:
    """Parts of a decoder, in order of depth, and of the encoder that may stand before it."""

    blocks: tuple[BlockParts, ...]
    final_norm: nn.Module | None
    unembed: Step | None
    """From the normalised residual stream to the model's logits; None where the way there could not be found."""
    own_cache: bool = False
    """Whether the model keeps a cache of a class of its own."""
    embeds_by_token: bool = True
    """Whether the token embedding puts out a vector a token, `[batch, pos, d_model]`."""
    embedding: nn.Module | None = None
    """What makes vectors of the decoder's tokens."""
    further: tuple[Stack, ...] = ()
    """Other stacks than the one that the numbers of blocks count: the encoder of an encoder-decoder."""
    decoder: nn.Module | None = None
    """The module that reads the decoder's tokens, of an encoder-decoder; None in other models."""
    unseen: str | None = None
    """Why there is no tower among the further stacks."""

    @property
    def main(self) -> Stack:
        """The decoder, or the only stack."""
        return Stack("", self.blocks, self.embedding, self.final_norm)

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """All stacks, the main one first."""
        return (self.main, *self.further)

    @property
    def attending(self) -> Iterator[tuple[int, BlockParts]]:
        """The main stack's blocks that have attention, with their numbers."""
        return self.main.attending

    @property
    def places(self) -> Iterator[tuple[str, int, BlockParts]]:
        """All attention: what stands before the names of its points, the number of its block in its stack, and the
        block with that attention in it."""
        for stack in self.stacks:
            for i, block in stack.attending:
                yield f"{stack.prefix}blocks.{i}.attn", i, block
                if block.cross is not None:
                    yield f"{stack.prefix}blocks.{i}.cross_attn", i, block.cross

    @property
    def additive(self) -> bool:
        """Whether the last residual stream is the sum of what goes into the first block and what attention and MLPs of
        all blocks write; cross-attention writes beside them."""
        return all((block.writers.complete and block.cross is None) or not block.ran for block in self.blocks)
