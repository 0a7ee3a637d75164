"""A model tried out before anybody relies on it: a few tokens with padding, bare and looked at.

Two tokens show the parts of a model (`interp.lens.anatomy`). Whether what they show holds is seen on more of them: a
model that asked for its attention's name or its mask could compute something else while a Lens looks, attend to keys
that are no tokens (compressed ones), or keep something else in its cache than what it attends to (latents).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from interp.errors import UnsupportedModelError
from interp.lens.evaluating import evaluation_mode
from interp.lens.finite import NonFiniteError, where_lost
from interp.lens.head import FIT
from interp.seam.call import AttentionCall
from interp.seam.routing import attention_through
from interp.seam.softmax_seam import Axes, Softmax, own_attention_through

Tensor = torch.Tensor
LENGTH, PADDING = 7, 3


class _Keys:
    """Stands in as the site of every attention module: notes the keys of its last call and delegates it."""

    def __init__(self) -> None:
        self.of: dict[nn.Module, Tensor] = {}
        self.number: dict[nn.Module, int] = {}

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        self.of[call.module], self.number[call.module] = call.k, call.k.shape[2]
        return call.answer()

    def probabilities(self, module: nn.Module, scores: Tensor, softmax: Softmax, real: Tensor | None) -> Tensor:
        self.number[module] = scores.shape[-1]
        return softmax(scores)

    def mixed(self, module: nn.Module, mixing: Tensor, values: Tensor | None, z: Tensor, axes: Axes) -> Tensor | None:
        return z


@dataclass(frozen=True)
class Kept:
    """What a model kept in its cache when it was tried out."""

    layers: frozenset[int]
    """Those whose cache holds the very keys that they attend to."""
    own: bool = False
    """Whether the cache is of a class of the model's own, which no other can stand in for (MiniMax)."""
    nothing: bool = False
    """Whether it kept no cache."""


@torch.no_grad()
def tried(model: Any, attention: dict[int, nn.Module], in_code: bool = False) -> Kept:
    """Run a model on a few tokens, those of its layers that are named having attention, and see what it keeps.

    in_code: whether attention is what modules compute in their own code.

    Raises UnsupportedModelError where the model computes something else while it is looked at, or attends to keys that
    are no tokens.
    """
    ids = some_tokens(model, 2 * LENGTH).view(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    keys = _Keys()
    sites = dict.fromkeys(attention.values(), keys)
    given: dict[str, Any] = {"attention_mask": mask}
    with evaluation_mode(model):
        try:
            bare = model(input_ids=ids, use_cache=False, **given).logits
        except Exception:  # not every model takes a mask
            given = {}
            bare = model(input_ids=ids, use_cache=False).logits
        with attention_through(model, sites), own_attention_through(model, sites if in_code else {}):
            try:
                out = model(input_ids=ids, use_cache=True, **given)
            except Exception:  # nor keeps every model a cache
                out = model(input_ids=ids, use_cache=False, **given)
    real = mask.bool() if given else torch.ones_like(mask, dtype=torch.bool)
    if not torch.isfinite(bare[real]).any():
        said = where_lost(model, [ids[1:]], lambda row: model(input_ids=row, use_cache=False))
        raise NonFiniteError(said or f"{type(model).__name__} computes no finite logits of a text with padding.")
    _agree(model, bare[real], out.logits[real])
    for layer, module in attention.items():
        if keys.number[module] != LENGTH:
            raise UnsupportedModelError(
                f"layer {layer} of {type(model).__name__} attends to {keys.number[module]} keys where there are "
                f"{LENGTH} tokens, so a column of its attention is no token."
            )
    held = {i: keys.of[module] for i, module in attention.items() if module in keys.of}
    return _kept(getattr(out, "past_key_values", None), held)


def some_tokens(model: Any, n: int) -> Tensor:
    """n different tokens of the model's vocabulary, none of them among the first, where special ones tend to be."""
    weight = getattr(model.get_input_embeddings(), "weight", None)  # MusicGen has a table for every codebook
    rows = model.config.get_text_config(decoder=True).vocab_size if weight is None else weight.shape[0]
    made: Tensor = torch.arange(n, device=model.device) * (rows // (2 * n) or 1) + rows // 3
    return made


def _agree(model: Any, bare: Tensor, seen: Tensor) -> None:
    fit = FIT[bare.dtype]
    known = torch.isfinite(bare)
    if not torch.allclose(seen[known], bare[known], rtol=fit, atol=fit * float(bare[known].abs().max())):
        raise UnsupportedModelError(
            f"{type(model).__name__} computes other logits while its attention is looked at, so what a Lens would show "
            "is not what the model does."
        )


def _kept(cache: Any, keys: dict[int, Tensor]) -> Kept:
    cache = getattr(cache, "self_attention_cache", cache)  # decoders that may stand behind an encoder have two
    if cache is None:
        return Kept(frozenset(), nothing=True)
    if type(cache) is not DynamicCache:
        return Kept(frozenset(), own=True)
    held = {i: getattr(cache.layers[i], "keys", None) for i in keys if i < len(cache.layers)}
    return Kept(frozenset(i for i, own in held.items() if isinstance(own, Tensor) and torch.equal(own, keys[i])))
