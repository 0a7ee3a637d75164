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
from interp.lens.head import FIT
from interp.seam.call import AttentionCall
from interp.seam.routing import attention_through

Tensor = torch.Tensor
LENGTH, PADDING = 7, 3


class _Keys:
    """Stands in as the site of every attention module: notes the keys of its last call and delegates it."""

    def __init__(self) -> None:
        self.of: dict[nn.Module, Tensor] = {}

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        self.of[call.module] = call.k
        return call.answer()


@dataclass(frozen=True)
class Kept:
    """What a model was seen to keep from one call to the next."""

    layers: set[int] | None
    """Those whose cache holds the very keys that they attend to, of those with attention; None: it kept no cache."""
    own_cache: str = ""
    """The class of a cache that the model makes itself and takes no other in its place (MiniMax)."""


@torch.no_grad()
def tried(model: Any, attention: dict[int, nn.Module]) -> Kept:
    """What a model keeps of a few padded tokens.

    Raises UnsupportedModelError where the model computes something else while it is looked at, or attends to keys that
    are no tokens.
    """
    ids = some_tokens(model, 2 * LENGTH).view(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    modes = {module: module.training for module in model.modules()}
    model.eval()
    keys = _Keys()
    try:
        given: dict[str, Any] = {"attention_mask": mask}
        try:
            bare = model(input_ids=ids, use_cache=False, **given).logits
        except Exception:  # not every model takes a mask
            given = {}
            bare = model(input_ids=ids, use_cache=False).logits
        with attention_through(model, dict.fromkeys(attention.values(), keys)):
            try:
                out = model(input_ids=ids, use_cache=True, **given)
            except Exception:  # nor keeps every model a cache
                out = model(input_ids=ids, use_cache=False, **given)
    finally:
        for module, training in modes.items():
            module.training = training
    real = mask.bool() if given else torch.ones_like(mask, dtype=torch.bool)
    _agree(model, bare[real], out.logits[real])
    for layer, module in attention.items():
        if keys.of[module].shape[2] != LENGTH:
            raise UnsupportedModelError(
                f"layer {layer} of {type(model).__name__} attends to {keys.of[module].shape[2]} keys where there are "
                f"{LENGTH} tokens, so a column of its attention is no token."
            )
    return _stored(getattr(out, "past_key_values", None), {i: keys.of[module] for i, module in attention.items()})


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


def _stored(cache: Any, keys: dict[int, Tensor]) -> Kept:
    if cache is None:
        return Kept(None)
    if type(cache).__module__ != DynamicCache.__module__:
        return Kept(set(), type(cache).__name__)
    if type(cache) is not DynamicCache:  # of encoder-decoders
        return Kept(set())
    held = {i: getattr(cache.layers[i], "keys", None) for i in keys if i < len(cache.layers)}
    return Kept({i for i, own in held.items() if isinstance(own, Tensor) and torch.equal(own, keys[i])})
