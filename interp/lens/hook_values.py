"""What hooks return, checked once for all points that can be edited.

Models reshape, store and index what a hook returns without asking for its shape, and a kernel given too few keys reads
whatever lies behind them. So a value has the point's shape or one that stretches to it without a doubt, and is
stretched here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from interp.errors import InterpError

Tensor = torch.Tensor


class Held(NamedTuple):
    """What a hook point was given: what comes out of its hooks has to fit in its place."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, value: Tensor) -> Held:
        return cls(value.shape, value.dtype, value.device)


def fitting(point: str, axes: str, held: Held, value: Any) -> Tensor:
    """What the hooks of a point made of its value, in the shape and dtype that the model goes on with.

    Of fewer entries along an axis, one alone stands for all; leading axes may be left out. Another floating dtype is
    converted. Raises InterpError for anything else.
    """
    if not isinstance(value, Tensor):
        raise InterpError(f"a hook on {point} returned {type(value).__name__}; return a tensor, or None to leave it.")
    if value.device != held.device:
        raise InterpError(
            f"a hook on {point} returned a tensor on {value.device}; move it to {held.device}, where the value was."
        )
    if value.layout != torch.strided or not value.dtype.is_floating_point:
        raise InterpError(
            f"a hook on {point} returned {value.dtype} ({value.layout}); return ordinary floating-point numbers, such "
            f"as {held.dtype}."
        )
    if value.shape != held.shape:
        if not _stretches(value.shape, held.shape):
            raise InterpError(
                f"a hook on {point} returned shape {list(value.shape)}, and the value there is {list(held.shape)} "
                f"[{', '.join(axes.split())}]; return that shape, or one that stretches to it."
            )
        value = value.expand(held.shape)
    fits: Tensor = value if value.dtype == held.dtype else value.to(held.dtype)
    return fits


def _stretches(shape: torch.Size, to: torch.Size) -> bool:
    """Whether a shape can only mean the other: axes line up from the right, and none is taken for its neighbour.

    A mean over positions without `keepdim` lines its texts up with positions where there are as many of either.
    """
    if len(shape) > len(to):
        return False
    if any(own not in (1, full) for own, full in zip(reversed(shape), reversed(to), strict=False)):
        return False
    return len(shape) in (0, 1, len(to)) or shape[0] == 1 or shape[0] != to[0]
