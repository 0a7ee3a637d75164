"""Gram matrices of a head's channels: which channels move together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import expect_bool, expect_float, expect_shape
from ..dispatch import Paths, choose, kernel
from . import cpu, reference

__all__ = ["channel_gram"]

PATHS: Paths[Tensor] = {
    "reference": reference.channel_gram,
    "cpu": cpu.channel_gram,
    "triton": kernel(__name__, "channel_gram"),
}


@torch.no_grad()
def channel_gram(x: Tensor, mask: Tensor | None = None, *, heads: int | None = None) -> Tensor:
    """x^T x over the real tokens of every head, or of every group of heads: which channels move together.

    x [B, H, N, D]: fp64, fp32, bf16 or fp16, with any strides; queries, keys or values.
    mask: Bool [B, N], False for padding, whose content does not matter; None: all tokens are real.
    heads: how many heads to return; divides H, and neighbouring heads are summed. Default: H.
    Returns [B, heads, D, D], summed and returned in fp32 (fp64 for fp64 inputs). Its diagonal over the number of real
    tokens is `channel_energy`. Of queries Q, summed over the heads that read a key head, and of its keys K: the product
    M of the two, element by element, has z^T M z = the sum of ||Q diag(z) K^T||^2 for the 0/1 indicator z of a set of
    channels. That is what the logits lose, exactly, where the set is dropped from the keys; ThinK (Xu et al. 2024,
    arXiv:2407.21018) ranks channels by M's diagonal alone.
    Raises ValueError or TypeError, in one sentence, on shapes and dtypes that do not fit.

    Cost: 2 B H N D^2 FLOPs, which is D for every byte of half-precision x: memory traffic limits it on a GPU, in fp32
    arithmetic does. Reads x once up to D = 128; above, a GPU reads it 2 ceil(D / 128) times, mostly from its cache.
    Extra memory: a block of tokens, and on a GPU B * heads matrices for each of the parts that tokens are split into.

    Examples:
        >>> gram = interp_kernels.channel_gram(k)
        >>> gram.shape
        torch.Size([1, 2, 8, 8])
        >>> torch.allclose(gram, k.mT @ k, atol=1e-5)
        True
    """
    operation = "channel_gram"
    expect_float(operation, x=x)
    expect_shape(operation, "x", x, "B H N D", {})
    if mask is not None:
        expect_bool(operation, mask=mask)
        expect_shape(operation, "mask", mask, "B N", {"B": (x.shape[0],), "N": (x.shape[2],)})
    heads = x.shape[1] if heads is None else heads
    if heads < 1 or x.shape[1] % heads:
        raise ValueError(f"{operation}: {heads} heads should divide {x.shape[1]} heads evenly; each sums a group.")
    return choose(PATHS, x)(x, mask, heads)
