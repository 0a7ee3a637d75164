"""Gram matrices of a head's channels, and their product: the exact loss of dropping any set of key channels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import expect_bool, expect_float, expect_shape
from ..dispatch import choose, kernel
from . import cpu, reference

PATHS = {
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
    tokens is `channel_energy`.
    Raises ValueError or TypeError, in one sentence, on shapes and dtypes that do not fit.

    Cost: 2 B H N D^2 FLOPs, which is D for every byte of half-precision x: memory traffic limits it on a GPU, in fp32
    arithmetic does. Reads x once up to D = 128; above, a GPU reads it 2 ceil(D / 128) times, mostly from its cache.
    Extra memory: a block of tokens, and on a GPU B * heads matrices for each of the parts that tokens are split into.
    """
    operation = "channel_gram"
    expect_float(operation, x=x)
    expect_shape(operation, "x", x, "B H N D", {})
    _expect_mask(operation, "mask", mask, "B N", x)
    heads = x.shape[1] if heads is None else heads
    _expect_divides(operation, heads, x)
    return choose(PATHS, x)(x, mask, heads)


@torch.no_grad()
def gram_product(q: Tensor, k: Tensor, *, query_mask: Tensor | None = None, key_mask: Tensor | None = None) -> Tensor:
    """M, the sum of (Q^T Q) * (K^T K), element by element, over the query heads Q of each key head K.

    For the 0/1 indicator z of a set of channels, z^T M z is the sum of ||Q diag(z) K^T||^2 over those heads: what the
    logits lose, exactly, where that set is dropped from the keys. ThinK ranks channels by M's diagonal alone.

    q [B, H, N, D], k [B, Hk, S, D]: fp64, fp32, bf16 or fp16, with any strides; query head h reads k's h // (H // Hk).
    query_mask, key_mask: Bool [B, N] and [B, S], False for padding, whose content does not matter.
    Returns [B, Hk, D, D] in fp32 (fp64 for fp64 inputs). Its factors, where they are wanted by themselves or at
    different times, are `channel_gram(q, query_mask, heads=Hk)` and `channel_gram(k, key_mask)`.
    Raises ValueError or TypeError, in one sentence, on shapes and dtypes that do not fit.

    Cost: 2 B (H N + Hk S) D^2 FLOPs; reads q and k as `channel_gram` does. No logits are formed.
    Source: derived; the loss is that of ThinK (Xu et al. 2024, arXiv:2407.21018).
    """
    operation = "gram_product"
    expect_float(operation, q=q, k=k)
    expect_shape(operation, "q", q, "B H N D", {})
    expect_shape(operation, "k", k, "B Hk S D", {"B": (q.shape[0],), "D": (q.shape[3],)})
    _expect_mask(operation, "query_mask", query_mask, "B N", q)
    _expect_mask(operation, "key_mask", key_mask, "B S", k)
    heads = k.shape[1]
    _expect_divides(operation, heads, q)
    return choose(PATHS, q)(q, query_mask, heads) * choose(PATHS, k)(k, key_mask, heads)


def _expect_mask(operation: str, name: str, mask: Tensor | None, pattern: str, x: Tensor) -> None:
    if mask is not None:
        expect_bool(operation, **{name: mask})
        batch, tokens = pattern.split()
        expect_shape(operation, name, mask, pattern, {batch: (x.shape[0],), tokens: (x.shape[2],)})


def _expect_divides(operation: str, heads: int, x: Tensor) -> None:
    if heads < 1 or x.shape[1] % heads:
        raise ValueError(f"{operation}: {heads} heads should divide {x.shape[1]} heads evenly; each sums a group.")
