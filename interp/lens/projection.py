"""Which child of an attention module reads its heads' outputs, and whether what it makes of them reaches the stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from interp.lens.writers import ModuleCall, Writers, same_tensor

Tensor = torch.Tensor


def heads_written(inside: list[ModuleCall], attention_name: str, found: Writers) -> bool:
    """Whether attention's own output is what its writer adds, or what a norm reads that does."""
    if found.mixer is None:
        return False
    own = next((call for call in inside if call.name == attention_name), None)
    writer = next(call for call in inside if call.name == found.mixer.name)
    if own is None or own.out is None or writer.out is None:
        return False
    same = own.out.numel() == writer.out.numel() and torch.equal(own.out.flatten(), writer.out.flatten())
    return same or (writer.given is not None and same_tensor(writer.given, own.out))


def out_projection(
    model: Any, attention_name: str, inner: list[ModuleCall], z: Tensor | None
) -> tuple[nn.Module | None, bool]:
    """The child of attention that reads z, and whether it reads z times a gate.

    Of a gated one no value equals z: it is the last child that is linear and reads something of z's size, each entry
    of z's sign and none where z has none (gates are positive).
    """
    if z is None:
        return None, False
    children = [call for call in inner if call.parent == attention_name and call.given is not None]
    for call in children:
        if call.given is not None and call.given.numel() == z.numel() and torch.equal(call.given.reshape(z.shape), z):
            return model.get_submodule(call.name), False
    for call in reversed(children):
        if call.given is not None and call.given.shape == z.shape and _scaled_down(call.given, z):
            return model.get_submodule(call.name), True
    return None, False


def _scaled_down(x: Tensor, z: Tensor) -> bool:
    """Whether x is z times positive numbers."""
    return bool(((x * z > 0) | (x == 0) | (z == 0)).all())
