"""With which arguments a model reads tokens."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def is_encoder_decoder(model: Any) -> bool:
    """Whether an encoder reads what a model is given, and a decoder writes beside it."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def arguments(model: Any, read: Tensor, written: Tensor) -> dict[str, Tensor]:
    """Arguments with which a model reads tokens: an encoder `read` and its decoder `written`, else one stack `read`."""
    return {"input_ids": read} | ({"decoder_input_ids": written} if is_encoder_decoder(model) else {})


def parameters_of(model: nn.Module) -> set[str]:
    """The arguments that a model's forward pass names, itself or in the decoder that it hands them down to."""
    inside: Any = model.get_decoder() if isinstance(model, PreTrainedModel) else None
    parts = [part for part in (model, getattr(model, "base_model", model), inside) if part is not None]
    return set().union(*(inspect.signature(part.forward).parameters for part in parts))
