"""Towers that pack the patches of all images, or of all windows of one, into a single row.

Their attention modules are called once for each image or window. Hooks see the calls one after the other; what is kept
of them is one row again.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from interp.errors import InterpError
from interp.seam.points import Point

with warnings.catch_warnings():  # the import adds filters that would hide other libraries' warnings from the user
    from transformer_lens.hook_points import HookPoint

Tensor = torch.Tensor


class PackedPoint(HookPoint):
    """A point of a tower: where that has a row `[patch, d_model]` without a batch, hooks see a batch of one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __call__(self, value: Any) -> Any:
        packed = isinstance(value, Tensor) and value.ndim == 2
        return super().__call__(value[None])[0] if packed else super().__call__(value)


def in_one_row(name: str, point: Point, before: Any, value: Tensor, cut: str) -> Any:
    """What a point has seen of earlier windows, with that of the next behind it.

    Positions follow each other; patterns and scores, in which a window sees itself alone, become blocks along the
    diagonal, with nothing elsewhere (the dtype's lowest number in scores). What has no positions is a list. cut: the
    mode of the slice of positions that was asked for.
    """
    if cut != "identity" and point.position_axis is not None:
        raise InterpError(f"{name} fires once for each window or image, so pos_slice would cut each; leave it out.")
    if point.position_axis is None:
        return [*(before if isinstance(before, list) else [before]), value]
    axes = point.shape.split()
    if not {"pos", "key"} <= set(axes):
        return torch.cat([before, value], point.position_axis)
    nothing = torch.finfo(value.dtype).min if name.endswith("scores") else 0.0
    rows, columns = (a + b for a, b in zip(before.shape[-2:], value.shape[-2:], strict=True))
    both = value.new_full((*value.shape[:-2], rows, columns), nothing)
    both[..., : before.shape[-2], : before.shape[-1]] = before
    both[..., before.shape[-2] :, before.shape[-1] :] = value
    return both
