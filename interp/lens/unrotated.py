"""Whether a layer's keys can be rotated back, tried on two tokens.

Keys rotated back must be something that the attention module made on the way: the output of its key projection or key
norm, or a slice of a fused one. They are not in layers without rotation (NoPE: SmolLM3, Cohere 2) that get the rotary
tables all the same, nor where a norm follows rotation (HunYuan).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from interp.seam.rotation import Rotation

Tensor = torch.Tensor


def rotation_of(attention: nn.Module, k: Tensor, tables: Any, written: list[Tensor]) -> Rotation | str:
    """How to rotate the keys `k [1, kv_head, token, d_head]` of a layer back, or why that cannot be done.

    tables: what the layer got as its position embeddings. written: outputs of the modules inside.
    """
    if tables is None:
        return "keys are not rotated"
    rotation = Rotation.of(attention, k.shape[-1])
    if isinstance(rotation, str):
        return rotation
    if not isinstance(tables, (tuple, list)) or len(tables) != 2 or not all(isinstance(t, Tensor) for t in tables):
        return "the layer's rotary tables are not cosines and sines"
    if any(_nearest(out, k.float()) == 0 for out in written):
        return "this layer does not rotate its keys, or a norm comes after it"
    try:
        back = rotation.undo(k, *tables)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        return f"its rotation cannot be run backwards ({' '.join(str(error).split())[:80]})"
    # the model rounds a few times on the way, in its own dtype; keys that are no such output are as far off as they are
    # large, whatever the dtype
    rounding = max(4 * torch.finfo(k.dtype).eps, 50 * torch.finfo(torch.float32).eps) * float(k.float().abs().max())
    if not any(_nearest(out, back) <= rounding for out in written):
        return "keys rotated back are no output of the layer's key projection or norm, so something else changes them"
    return rotation


def _nearest(out: Tensor, keys: Tensor) -> float:
    """How far every head's key `keys [1, kv_head, token, d_head]` is, at most, from some stretch of a module's output
    for that token; infinite where the output is too narrow.

    A module sees tokens before heads, or heads before tokens where they were moved already.
    """
    n, d_head = keys.shape[2:]
    layouts = [out, out.transpose(1, 2)] if out.ndim == 4 else [out]
    by_token = [x.float().reshape(n, -1) for x in layouts if x.numel() % n == 0]

    def farthest(row: Tensor) -> float:
        stretches = row.unfold(1, d_head, 1)  # [token, start, d_head]
        nearest = [(stretches - keys[0, head, :, None]).abs().amax((0, 2)).min() for head in range(keys.shape[1])]
        return float(torch.stack(nearest).max())

    return min((farthest(row) for row in by_token if row.shape[1] >= d_head), default=torch.inf)
