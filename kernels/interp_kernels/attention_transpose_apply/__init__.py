"""A^T @ Y, without A: how much attention every key receives, weighted by anything known about the queries."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from ..checks import expect_float, expect_shape
from ..dispatch import Paths, choose, kernel
from ..facts import MaskFacts, resolve
from . import cpu, reference

__all__ = ["attention_transpose_apply"]

PATHS: Paths[Tensor] = {
    "reference": reference.attention_transpose_apply,
    "cpu": cpu.attention_transpose_apply,
    "triton": kernel(__name__, "attention_transpose_apply"),
}


@torch.no_grad()
def attention_transpose_apply(
    q: Tensor, k: Tensor, lse: Tensor, y: Tensor | None = None, **facts: Unpack[MaskFacts]
) -> Tensor:
    """The transposed product A^T @ y of every head, with A_ij = exp(score_ij - lse_i).

    Args:
        q: `[B, H, N, D]`, fp64, fp32, bf16 or fp16.
        k: `[B, Hk, S, D]`, the same dtypes. Hk divides H; query head h reads kv head h // (H // Hk).
        lse: `[B, H, N]`, of each row over its real keys, as `attention_apply` returns it; -inf makes a row of zeros.
        y: `[B, H, N, R]` or `[B, H, N]` per query head; None means ones, which gives the column mass: attention
            received.
        facts: see `MaskFacts`; the same as for lse. `sinks` are added to the denominator here, so do not put them into
            lse.

    Returns:
        `[B, H, S, R]`, or `[B, H, S]` where y has no R, summed and returned in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost for P visible (query, key) pairs a head: 2 H P (D + R) FLOPs, and H P exponentials; reads q, k, y once a head
    and writes H S R numbers; extra memory O((N + S) (D + R)) and one block of scores.
    Source: H2O's heavy-hitter score (Zhang et al. 2023, arXiv:2306.14048) is y = None; exact rebuilding of blocks of A
    from lse is the backward pass of FlashAttention (arXiv:2205.14135).

    Examples:
        >>> lse = interp_kernels.attention_apply(q, k).lse
        >>> mass = interp_kernels.attention_transpose_apply(q, k, lse)
        >>> mass.sum(-1).round(decimals=3)  # six queries have six times their attention to give
        tensor([[6., 6., 6., 6.]])
    """
    operation = "attention_transpose_apply"
    resolved = resolve(operation, q, k, **facts)
    batch, heads, queries, _ = resolved.shape
    sizes = {"B": (batch,), "H": (heads,), "N": (queries,)}
    expect_float(operation, lse=lse)
    expect_shape(operation, "lse", lse, "B H N", sizes)
    if y is None:
        return choose(PATHS, q)(q, k, lse, None, resolved)[..., 0]
    expect_float(operation, y=y)
    expect_shape(operation, "y", y, "B H N" if y.ndim == 3 else "B H N R", sizes)
    if y.ndim == 3:
        return choose(PATHS, q)(q, k, lse, y[..., None], resolved)[..., 0]
    return choose(PATHS, q)(q, k, lse, y, resolved)
