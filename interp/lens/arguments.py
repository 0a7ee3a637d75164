"""With which arguments a model reads tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_encoder_decoder(model: Any) -> bool:
    """Whether an encoder reads what a model is given, and a decoder writes beside it."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def arguments(model: Any, read: Tensor, written: Tensor) -> dict[str, Tensor]:
    """Arguments with which a model reads tokens: an encoder `read` and its decoder `written`, else one stack `read`."""
    return {"input_ids": read} | ({"decoder_input_ids": written} if is_encoder_decoder(model) else {})
