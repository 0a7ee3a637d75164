"""The shape of a model, in TransformerLens' field names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.anatomy import Anatomy


@dataclass(frozen=True)
class LensConfig:
    """What a study needs to know of a model. Field names are TransformerLens' where it has one."""

    model_name: str
    architecture: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_model: int
    d_vocab: int
    n_ctx: int
    positional_embedding_type: str
    """`rotary` where keys are rotated before they are stored, `other` else (learned or none)."""
    dtype: str
    device: str
    attention: str
    """The model's own attention implementation, to which unhooked layers go: sdpa, eager, flash_attention_2, ..."""
    window_size: int | None
    """Sliding window in tokens of the layers that have one."""
    attn_types: tuple[str, ...]
    """`global` or `local` (sliding window) for each layer."""
    attn_softcap: float | None
    learned_sinks: bool
    parallel_attn_mlp: bool
    residual_scale: float

    @property
    def full_attention_layers(self) -> tuple[int, ...]:
        """Layers without a sliding window: those that a cache policy acts on."""
        return tuple(i for i, kind in enumerate(self.attn_types) if kind == "global")


def config_of(model: Any, anatomy: Anatomy, name: str | None) -> LensConfig:
    """Read the shape of a model from its config and from what its two-token run showed."""
    config = model.config.get_text_config(decoder=True)
    blocks = anatomy.blocks
    seen = blocks[0].seen
    windows = [block.seen["window"] for block in blocks]
    caps = [block.seen["softcap"] for block in blocks if block.seen["softcap"] is not None]
    return LensConfig(
        model_name=name or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        architecture=type(model).__name__,
        n_layers=len(blocks),
        n_heads=seen["n_heads"],
        n_key_value_heads=seen["n_key_value_heads"],
        d_head=seen["d_head"],
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        n_ctx=int(getattr(config, "max_position_embeddings", 0) or 0),  # also the name of GPT-2's n_positions
        positional_embedding_type="rotary" if seen["rotary"] else "other",
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        attention=config._attn_implementation,
        window_size=next((int(w) for w in windows if w), None),
        attn_types=tuple("local" if w else "global" for w in windows),
        attn_softcap=caps[0] if caps else None,
        learned_sinks=any(block.seen["sinks"] for block in blocks),
        parallel_attn_mlp=any(block.parallel for block in blocks),
        residual_scale=blocks[0].residual_scale,
    )
