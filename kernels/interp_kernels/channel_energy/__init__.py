"""Mean square of every channel: how much of a head's magnitude each channel carries."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import expect_bool, expect_float, expect_shape
from ..dispatch import Paths, choose, kernel
from . import cpu, reference

__all__ = ["channel_energy"]

PATHS: Paths[Tensor] = {
    "reference": reference.channel_energy,
    "cpu": cpu.channel_energy,
    "triton": kernel(__name__, "channel_energy"),
}


@torch.no_grad()
def channel_energy(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over real tokens of x squared, for keys, queries or values.

    Args:
        x: `[B, H, N, D]`, fp64, fp32, bf16 or fp16.
        mask: bool `[B, N]`, False for padding, whose content does not matter; None: all tokens are real.

    Returns:
        `[B, H, D]`, summed and returned in fp32 (fp64 for fp64 inputs); 0 for a text without real tokens.

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost: 2 B H N D FLOPs; reads x once, so memory traffic is what limits it; extra memory one block of tokens.
    Source: ThinK (Xu et al. 2024, arXiv:2407.21018) scores a key channel by the product of this for q and k.

    Examples:
        >>> interp_kernels.channel_energy(torch.tensor([[[[1.0, 2.0], [3.0, 0.0]]]]))
        tensor([[[5., 2.]]])
    """
    expect_float("channel_energy", x=x)
    expect_shape("channel_energy", "x", x, "B H N D", {})
    if mask is not None:
        expect_bool("channel_energy", mask=mask)
        expect_shape("channel_energy", "mask", mask, "B N", {"B": (x.shape[0],), "N": (x.shape[2],)})
    return choose(PATHS, x)(x, mask)
