"""A part of the seam: undoing a model's rotary embedding with the modelling file's own rotation."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor


class Rotation:
    """Undoes a model's rotary embedding with the modelling file's own rotation, run with the opposite sine.

    `width` channels are rotated, the first ones of each head (Phi, GPT-NeoX and StableLM rotate only a part). Rotating
    by θ and back multiplies by cos² + sin², which is 1 except where the model scales its tables (gpt-oss: 1.81).
    """

    def __init__(self, rotate: Callable[..., Any], width: int) -> None:
        self.rotate, self.width = rotate, width
        self.alone = list(inspect.signature(rotate).parameters)[1:2] == ["cos"]
        """Whether it rotates one tensor at a time (Gemma 3n and 4) instead of queries and keys together."""

    @classmethod
    def of(cls, module: nn.Module, d_head: int) -> Rotation | str:
        """The rotation of an attention module, or the reason why keys cannot be rotated back."""
        if hasattr(module, "kv_lora_rank"):
            return "keys of latent attention are made of a rotated and an unrotated part"
        rotate = vars(sys.modules[type(module).__module__]).get("apply_rotary_pos_emb")
        if rotate is None:
            return "the modelling file defines no apply_rotary_pos_emb"
        config = getattr(module, "config", None)
        parameters = getattr(config, "rope_parameters", None) or {}
        fraction = parameters.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
        return cls(rotate, int(getattr(module, "rotary_ndims", d_head * fraction)))

    def undo(self, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`k [batch, kv_head, pos, d_head]` as it was before rotation, in fp32; `cos`, `sin` `[batch, pos, ...]`."""
        k, cos, sin = k.float(), cos.float(), sin.float()
        turned, rest = k[..., : self.width], k[..., self.width :]
        if self.alone:
            back = self.rotate(turned, cos, -sin)
        else:
            _, back = self.rotate(turned[:, :0], turned, cos, -sin)  # it rotates queries too: give it none
        return torch.cat([back / (cos**2 + sin**2).mean(-1)[:, None, :, None], rest], -1)
