"""With which arguments a model reads tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.errors import InterpError


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


def refuse_misfits(given: Mapping[str, Any], new: int) -> None:
    """Raise InterpError for a cache or position ids that no model takes, where a call reads `new` tokens."""
    past, ids = given.get("past_key_values"), given.get("position_ids")
    if past is not None and not hasattr(past, "get_seq_length"):
        raise InterpError(f"past_key_values is a cache, such as lens.last_cache, not {type(past).__name__}.")
    if ids is None:
        return
    whole = isinstance(ids, Tensor) and not (ids.is_floating_point() or ids.is_complex())
    if not whole or ids.ndim not in (2, 3) or ids.shape[-1] != new or int(ids.min()) < 0:
        raise InterpError(
            f"position_ids is a tensor [batch, pos] of whole numbers from 0 on, one for each of {new} tokens."
        )
