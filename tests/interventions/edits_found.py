"""Every attention edit that there is, with the settings under which tests look at it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

import interp
from interp.interventions import AttentionEdit, available
from tests.models import shared, tiny

IMAGE = 77
"""The token that stands for images in models of text alone, for edits that ask for images."""
PLACES = slice(5, 10)
"""Where it then stands in a text; every third of its places has a massive activation on channel 7 after layer 0."""

EDITS: dict[str, type[AttentionEdit]] = {
    name: cls for name, cls in available().items() if issubclass(cls, AttentionEdit)
}


def examples() -> dict[str, AttentionEdit]:
    """`EXAMPLES` of `tests/interventions/test_NAME.py` for each edit, or the edit with its default settings.

    Each should change the attention of a text of twelve tokens.
    """
    found: dict[str, AttentionEdit] = {}
    for name, cls in EDITS.items():
        own = f"tests.interventions.test_{name}"
        given = getattr(import_module(own), "EXAMPLES", None) if find_spec(own) else None
        found |= {f"{name}-{i}": edit for i, edit in enumerate(given or [cls()])}
    return found


EXAMPLES = examples()


def lens_for(edit: AttentionEdit, name: str, fresh: bool = False) -> interp.Lens:
    """A tiny model; for an edit of images one with image tokens, of which some are sinks."""
    if edit.reads_images:
        return interp.load(seeing(tiny(name)))
    return interp.load(tiny(name) if fresh else shared(name))


def text_for(edit: AttentionEdit, ids: torch.Tensor) -> torch.Tensor:
    """The text, with image tokens in it where the edit asks for them."""
    return with_places(ids) if edit.reads_images else ids


def with_places(ids: torch.Tensor) -> torch.Tensor:
    ids = ids.clone()
    ids[:, PLACES] = IMAGE
    return ids


def seeing(model: Any) -> Any:
    """A model of text that says which token is an image's, and has massive activations at some of these."""
    block = interp.load(model).anatomy.blocks[0].block
    model.config.image_token_id = IMAGE
    planted: dict[str, torch.Tensor] = {}

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        past = kwargs.get("past_key_values")
        if mask is None:
            start = 0 if past is None else past.get_seq_length()
            positions = start + torch.arange(ids.shape[1])[None]
        else:
            positions = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :]
        planted["at"] = (ids == IMAGE) & (positions % 3 == 0)

    def plant(module: Any, args: Any, out: Any) -> Any:
        stream = out[0] if isinstance(out, tuple) else out
        height = 10 * stream.detach().norm(dim=-1, keepdim=True) * planted["at"][..., None]
        stream = stream + height * (torch.arange(stream.shape[-1]) == 7)
        return (stream, *out[1:]) if isinstance(out, tuple) else stream

    model.register_forward_pre_hook(note, with_kwargs=True)
    block.register_forward_hook(plant)
    return model
