"""The shape of a model, in TransformerLens' field names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

AttentionType = Literal["global", "local", "shared", "other", "none"]
"""global: to all earlier tokens. local: to a sliding window, or to a chunk. shared: to keys and values of an earlier
layer, or to what a policy left of them. other: its cache holds something else than the keys it attends to, or what they
are made of (an index of sparse attention beside keys). none: the layer has another mixer (linear attention, Mamba, a
convolution)."""


@dataclass(frozen=True)
class LensConfig:
    """What a study needs to know of a model. Field names are TransformerLens' where it has one."""

    attn_only: ClassVar[bool] = False
    """That every block has an MLP, as TransformerLens asks when a residual stream is taken apart."""
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
    attn_types: tuple[AttentionType, ...]
    """What each layer attends to, see `AttentionType`."""
    attn_softcap: float | None
    learned_sinks: bool
    parallel_attn_mlp: bool
    residual_scale: float
    latent_layers: tuple[int, ...] = ()
    """Layers whose cache holds latents, one for all heads, of which keys and values are made (`interp.seam.latent`)."""
    latent_widths: tuple[int, int] | None = None
    """Channels of a latent, and of the rotated key beside it; None where there are none."""
    indexed_layers: tuple[int, ...] = ()
    """Layers whose queries each choose by an index, with keys of its own in the cache, what they attend to."""
    image_token_id: int | None = None
    """The token that stands where the features of an image go; None in models that read text alone."""

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Layers that have attention: all of them, but in hybrids."""
        return tuple(i for i, kind in enumerate(self.attn_types) if kind != "none")

    @property
    def full_attention_layers(self) -> tuple[int, ...]:
        """Layers whose cache grows with the text and is theirs alone: those that a cache policy acts on."""
        return tuple(i for i, kind in enumerate(self.attn_types) if kind == "global")


def image_token_of(config: Any) -> int | None:
    """The id of an image's tokens by a model's own config; None where that names none."""
    named = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((token for token in named if isinstance(token, int)), None)
