"""A cache taken apart into tensors and plain words, and put together again, so that it can lie in a file.

What a layer holds is whatever attributes it has: tensors, numbers, segments, slots. Each becomes a tensor under a name
of its own or words that JSON knows; a class is never named in them but for those of `KNOWN`, so that reading a file
makes nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from interp.cache.lens_cache import LensCache
from interp.cache.segments import Segment
from interp.cache.slots import Slots
from interp.cache.stored_layer import StoredLayer

Tensor = torch.Tensor
KNOWN: dict[str, type] = {"Segment": Segment, "Slots": Slots}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
PLACE = "device"
"""The attribute that says where a layer lies, which is where it is put together again."""


def taken_apart(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Words for a value; its tensors go to `tensors`, under names that start with `name`.

    Raises TypeError for what is neither a tensor, a plain value, a collection of such nor a class of `KNOWN`.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[name], order = _laid_out(value.detach())
        return {"tensor": [name, *order]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, range):
        return {"range": [value.start, value.stop]}
    if isinstance(value, (list, tuple, set)):
        kind = next(kind for kind in (list, tuple, set) if isinstance(value, kind)).__name__
        members = sorted(value) if kind == "set" else value
        return {kind: [taken_apart(one, tensors, f"{name}.{i}") for i, one in enumerate(members)]}
    if isinstance(value, Mapping):
        return {
            "dict": [[taken_apart(k, tensors, name), taken_apart(v, tensors, f"{name}.{k}")] for k, v in value.items()]
        }
    if type(value) in KNOWN.values():
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if (tied := held.get("tied")) is not None:  # values are the first channels of keys
            del held["values"]
        words = {k: taken_apart(v, tensors, f"{name}.{k}") for k, v in held.items()}
        return {type(value).__name__: words if tied is None else {**words, "values": {"first": [words["keys"], tied]}}}
    raise TypeError(f"{name} is a {type(value).__name__}")


def put_together(words: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `taken_apart` made words of. Raises ValueError or KeyError for words that it cannot have made."""
    if not isinstance(words, dict):
        return words
    ((kind, said),) = words.items()
    if kind == "tensor":
        name, *order = said
        return tensors[name].permute([order.index(d) for d in range(len(order))])
    if kind == "first":
        return put_together(said[0], tensors)[..., : said[1]]
    if kind == "dtype":
        return DTYPES[said]
    if kind == "range":
        return range(*said)
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](put_together(one, tensors) for one in said)
    if kind == "dict":
        return {put_together(k, tensors): put_together(v, tensors) for k, v in said}
    return KNOWN[kind](**{k: put_together(v, tensors) for k, v in said.items()})


def _laid_out(x: Tensor) -> tuple[Tensor, list[int]]:
    """A tensor as it lies in memory, contiguous, and its axes in that order: sums that run along another order round
    otherwise."""
    order = sorted(range(x.ndim), key=lambda d: (-x.stride()[d], d))
    lies = x.permute(order)
    return (lies, order) if lies.is_contiguous() else (x.contiguous(), list(range(x.ndim)))


def layers_apart(cache: LensCache, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    """What each layer of a cache holds, in words; its tensors go to `tensors`."""
    made = []
    for i, layer in enumerate(cache.layers):
        held = {k: v for k, v in vars(layer).items() if k not in (PLACE, "seam")}
        if isinstance(layer, StoredLayer) and layer.in_slots:
            del held["_segments"]  # they are views of the slots
        words = {k: taken_apart(v, tensors, f"layers.{i}.{k}") for k, v in held.items()}
        made.append({"class": type(layer).__name__, "held": words})
    return made


def fill(cache: LensCache, layers: list[dict[str, Any]], tensors: Mapping[str, Tensor], device: Any) -> None:
    """Give an empty cache's layers what `layers_apart` took from another one's.

    Raises ValueError where they are layers of another kind.
    """
    like = getattr(cache, "layer_class_to_replicate", None)
    while len(cache.layers) < len(layers) and like is not None:
        cache.layers.append(like())
    if [type(layer).__name__ for layer in cache.layers] != [said["class"] for said in layers]:
        raise ValueError("its layers are not those of this model's cache (another release of transformers, perhaps).")
    for layer, said in zip(cache.layers, layers, strict=True):
        held = {name: put_together(words, tensors) for name, words in said["held"].items()}
        if taken := [name for name in held if callable(getattr(type(layer), name, None))]:
            raise ValueError(f"its layers hold {', '.join(sorted(taken))}, which are functions of this release.")
        vars(layer).update(held)
        if isinstance(layer, StoredLayer) and "_segments" not in held:
            layer.free_slot()
        if getattr(layer, "is_initialized", False):
            layer.device = device
