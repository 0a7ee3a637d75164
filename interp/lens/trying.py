"""A model tried out before anybody relies on it: a few tokens with padding, bare and looked at.

Two tokens show the parts of a model (`interp.lens.anatomy`). Whether what they show holds is seen on more of them: a
model that asked for its attention's name or its mask could compute something else while a Lens looks, attend to keys
that are no tokens (compressed ones), or keep something else in its cache than what it attends to. Where that is latents
of which it makes keys and values, cache policies can act on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers import DynamicCache

from interp.errors import UnsupportedModelError
from interp.lens.arguments import arguments, is_encoder_decoder
from interp.lens.evaluating import evaluation_mode
from interp.lens.finite import NonFiniteError, where_lost
from interp.lens.head import FIT
from interp.seam.call import AttentionCall
from interp.seam.latent import makes
from interp.seam.routing import attention_through
from interp.seam.softmax_seam import Axes, Softmax, own_attention_through

Tensor = torch.Tensor
LENGTH, PADDING = 7, 3


class _Keys:
    """Stands in as the site of every attention module: notes keys and values of its last call and delegates it."""

    def __init__(self) -> None:
        self.of: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.number: dict[nn.Module, int] = {}

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        self.of[call.module], self.number[call.module] = (call.k, call.v), call.k.shape[2]
        return call.answer()

    def probabilities(self, module: nn.Module, scores: Tensor, softmax: Softmax, real: Tensor | None) -> Tensor:
        self.number[module] = scores.shape[-1]
        return softmax(scores)

    def mixed(self, module: nn.Module, mixing: Tensor, values: Tensor | None, z: Tensor, axes: Axes) -> Tensor | None:
        return z


@dataclass(frozen=True)
class Tried:
    """An attention module to be looked at: what people call it, the number of its layer in the cache, and whether its
    keys are of its own tokens, of those that an encoder read, or of both."""

    module: Any
    where: str
    layer: int | None
    keys: Literal["own", "read", "all"]


@dataclass(frozen=True)
class Kept:
    """What a model kept in its cache when it was tried out."""

    layers: frozenset[int]
    """Those whose cache holds the very keys that they attend to."""
    latent: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Those whose cache holds latents of which their module makes keys and values, see `interp.seam.latent`, with the
    channels of a latent and of a rotated key."""
    own: bool = False
    """Whether the cache is of a class of the model's own, which no other can stand in for (MiniMax)."""
    nothing: bool = False
    """Whether it kept no cache."""


@torch.no_grad()
def tried(model: Any, attention: Sequence[Tried], in_code: bool = False) -> Kept:
    """Run a model on a few tokens and see what it keeps.

    attention: all modules that attend. in_code: whether attention is what modules compute in their own code.

    Raises UnsupportedModelError where the model computes something else while it is looked at, or attends to keys that
    are no tokens.
    """
    ids = some_tokens(model, 2 * LENGTH).view(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    written = ids[:, PADDING:].flip(0)  # read by a decoder alone, where an encoder reads the rest
    text = arguments(model, ids, written)
    keys = _Keys()
    sites = dict.fromkeys((one.module for one in attention), keys)
    given: dict[str, Any] = {"attention_mask": mask}
    with evaluation_mode(model):
        try:
            bare = model(**text, use_cache=False, **given).logits
        except Exception:  # not every model takes a mask
            given = {}
            bare = model(**text, use_cache=False).logits
        with attention_through(model, sites), own_attention_through(model, sites if in_code else {}):
            try:
                out = model(**text, use_cache=True, **given)
            except Exception:  # nor keeps every model a cache
                out = model(**text, use_cache=False, **given)
    masked = given and not is_encoder_decoder(model)
    real = mask.bool() if masked else torch.ones(bare.shape[:2], dtype=torch.bool, device=bare.device)
    if not torch.isfinite(bare[real]).any():
        lost_at = where_lost(model, [ids[1:]], lambda row: model(**arguments(model, row, written[1:]), use_cache=False))
        raise NonFiniteError(lost_at or f"{type(model).__name__} computes no finite logits of a text with padding.")
    _agree(model, bare[real], out.logits[real])
    own = LENGTH if not is_encoder_decoder(model) else written.shape[1]
    wanted = {"own": own, "read": LENGTH, "all": own + LENGTH}
    for one in attention:
        if keys.number[one.module] != wanted[one.keys]:
            raise UnsupportedModelError(
                f"{one.where} of {type(model).__name__} attends to {keys.number[one.module]} keys where there are "
                f"{wanted[one.keys]} tokens, so a column of its attention is no token."
            )
    modules = {one.layer: one.module for one in attention if one.layer is not None}
    attended = {i: keys.of[module] for i, module in modules.items() if module in keys.of}
    return _kept(getattr(out, "past_key_values", None), modules, attended)


def vocabulary(model: Any) -> int:
    """How many tokens a model knows: rows of its embedding or, where it has several or names none, what it says."""
    weight = None
    with suppress(NotImplementedError):
        weight = getattr(model.get_input_embeddings(), "weight", None)  # MusicGen has a table for every codebook
    return int(model.config.get_text_config(decoder=True).vocab_size if weight is None else weight.shape[0])


def some_tokens(model: Any, n: int) -> Tensor:
    """n tokens of the model's vocabulary: different ones, and none of the first, where special ones tend to be, unless
    there are too few."""
    rows = vocabulary(model)
    made: Tensor = (torch.arange(n, device=model.device) * (rows // (2 * n) or 1) + rows // 3) % rows
    return made


def _agree(model: Any, bare: Tensor, seen: Tensor) -> None:
    fit = FIT[bare.dtype]
    known = torch.isfinite(bare)
    if not torch.allclose(seen[known], bare[known], rtol=fit, atol=fit * float(bare[known].abs().max())):
        raise UnsupportedModelError(
            f"{type(model).__name__} computes other logits while its attention is looked at, so what a Lens would show "
            "is not what the model does."
        )


def _kept(cache: Any, attention: dict[int, nn.Module], attended: dict[int, tuple[Tensor, Tensor]]) -> Kept:
    """What a cache has kept, beside the keys and values that layers attended to."""
    cache = getattr(cache, "self_attention_cache", cache)  # decoders that may stand behind an encoder have two
    if cache is None:
        return Kept(frozenset(), nothing=True)
    if type(cache) is not DynamicCache:
        return Kept(frozenset(), own=True)
    layers = {i: cache.layers[i] for i in attended if i < len(cache.layers)}
    held = {
        i: (layer.keys, layer.values) for i, layer in layers.items() if isinstance(getattr(layer, "keys", 0), Tensor)
    }
    same = frozenset(i for i, (keys, _) in held.items() if torch.equal(keys, attended[i][0]))
    others = {i: both for i, both in held.items() if i not in same}
    latent = {i: both for i, both in others.items() if makes(attention[i], *both, *attended[i], FIT[both[0].dtype])}
    return Kept(same, {i: (latents.shape[-1], rotated.shape[-1]) for i, (latents, rotated) in latent.items()})
