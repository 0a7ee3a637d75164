"""Position ids where a model does not count tokens one by one: with padding, and after images.

Some models (Qwen-VL, GLM-V) give an image's tokens a place in a grid, so that what follows has other numbers than its
place in the row. They remember by how much in themselves, from whichever call had an image last; a later call with
another cache, or with the same one in chunks under a mask, would be given wrong positions. So the offset is kept with
the cache that it belongs to, and positions after the first call of a cache are given explicitly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

Tensor = torch.Tensor
OFFSET = "rope_deltas"
"""Where such a model remembers by how much positions after its images are moved."""
GRIDS = ("image_grid_thw", "video_grid_thw")

_offsets: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()


def counting(model: nn.Module) -> Any:
    """The module that gives images a grid of positions, or None."""
    return next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)


def put(counts: Any, arguments: dict[str, Any], mask: Any, seen: int, new: Tensor, past: Any) -> None:
    """Put position ids into the arguments of a call, where the model would not find the right ones itself.

    counts: see `counting`. mask: of all tokens, or None. seen: how many tokens are in the cache `past`. new: those of
    this call, or their embeddings.
    """
    if arguments.get("position_ids") is not None or any(arguments.get(name) is not None for name in GRIDS):
        return
    plain = isinstance(mask, Tensor) and mask.ndim == 2
    padded = plain and not bool(mask.all())
    offset = None if past is None or counts is None or not seen else _offsets.get(past)
    if not padded and offset is None and (counts is None or not seen):
        return
    if plain:
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, seen:]
    elif mask is None:
        positions = torch.arange(seen, seen + new.shape[1], device=new.device)[None]
    else:
        return
    arguments["position_ids"] = positions if offset is None else positions + offset.to(positions.device)


def remember(counts: Any, arguments: Mapping[str, Any], past: Any) -> None:
    """Keep with a cache by how much its images moved what follows, after the call that read them."""
    if counts is None or past is None or not any(arguments.get(name) is not None for name in GRIDS):
        return
    if isinstance(offset := getattr(counts, OFFSET, None), Tensor):
        _offsets[past] = offset.detach().clone()


def go_on(counts: Any, past: Any) -> None:
    """Have transformers' own generation go on from what a cache has read."""
    if counts is not None and past is not None and past.get_seq_length():
        setattr(counts, OFFSET, _offsets.get(past))
