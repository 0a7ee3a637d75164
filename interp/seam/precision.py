"""One dtype for one attention call: under `torch.autocast` queries, keys and values come in two.

Rotation leaves queries and keys in float32 while values are what a half-precision matrix product made. The model's own
attention has them cast by autocast itself; kernels, plans and edits get them cast alike, and compute with autocast off,
since it would change the dtype of some of their steps and not of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from interp.undoing import autocasting

if TYPE_CHECKING:
    from interp.seam.call import AttentionCall

Tensor = torch.Tensor


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes matrix products in on a device; None while it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def plain_numbers(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off on a device while the block runs."""
    return nullcontext() if autocast_dtype(device) is None else autocasting(device.type, False)


def alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in one dtype: that of autocast where it is on (it leaves float64 alone), else the widest of theirs."""
    widest = reduce(torch.promote_types, (x.dtype for x in tensors))
    low = autocast_dtype(tensors[0].device)
    dtype = widest if low is None or widest == torch.float64 else low
    return tuple(x.to(dtype) for x in tensors)


@contextmanager
def in_one_dtype(call: AttentionCall) -> Iterator[AttentionCall]:
    """A call with its queries, keys and values alike, and autocast off while the block runs.

    `answer` still is what the model itself would have computed, from what it passed and under its own autocast.
    """
    low = autocast_dtype(call.q.device)
    if low is None and call.q.dtype == call.k.dtype == call.v.dtype:
        yield call
        return
    q, k, v = alike(call.q, call.k, call.v)
    device = call.q.device.type

    def own() -> tuple[Tensor, Tensor | None]:
        with autocasting(device, low is not None):
            return call.answer()

    with plain_numbers(call.q.device):
        yield replace(call, q=q, k=k, v=v, own=lambda *_, **__: own())
