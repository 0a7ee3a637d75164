"""Keys with only the channels that a cache keeps, each head with its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import expect_shape
from ..dispatch import Paths, choose, kernel
from . import cpu, reference

__all__ = ["think_pack"]

PATHS: Paths[Tensor] = {
    "reference": reference.think_pack,
    "cpu": cpu.think_pack,
    "triton": kernel(__name__, "think_pack"),
}

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What stands for a dtype of so many bytes: copies through floating point may change the bits of a NaN."""


@torch.no_grad()
def think_pack(k: Tensor, channels: Tensor) -> Tensor:
    """The `channels` of k, bit for bit, in memory of their own.

    Args:
        k: `[B, Hs, n, D]`, any dtype of up to 8 bytes, with any strides; keys, or values.
        channels: integers `[B, Hs, T]` from 0 to D - 1.

    Returns:
        `[B, Hs, n, T]` in k's dtype, laid out as the next reader likes it: on the CPU path channel by channel, as
        products along the tokens want it with few queries; on a GPU token by token, as `packed_decode` loads it.

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost: reads k once and writes T / D of it.
    Source: ThinK, Xu et al. 2025 (arXiv:2407.21018), section 3.3.

    Examples:
        >>> interp_kernels.think_pack(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[0, 2]]]))
        tensor([[[[1., 3.]]]])
    """
    operation = "think_pack"
    expect_shape(operation, "k", k, "B Hs n D", {})
    expect_shape(operation, "channels", channels, "B Hs T", {"B": (k.shape[0],), "Hs": (k.shape[1],)})
    if channels.is_floating_point() or channels.is_complex() or channels.dtype == torch.bool:
        raise TypeError(f"{operation}: channels must be integers, found {channels.dtype}.")
    if k.element_size() not in BITS:
        raise TypeError(f"{operation}: k must be of a dtype of at most 8 bytes, found {k.dtype}.")
    bits = k.view(BITS[k.element_size()])
    return choose(PATHS, bits)(bits, channels).view(k.dtype)
