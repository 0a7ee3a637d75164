"""A @ X and A^T @ A @ X without A: one step of subspace iteration or Lanczos on the attention matrix."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from ..checks import expect_float, expect_shape
from ..dispatch import Paths, choose, kernel
from ..facts import MaskFacts, resolve
from . import cpu, reference

__all__ = ["attention_gram_apply"]

PATHS: Paths[tuple[Tensor, Tensor]] = {
    "reference": reference.attention_gram_apply,
    "cpu": cpu.attention_gram_apply,
    "triton": kernel(__name__, "attention_gram_apply"),
}


@torch.no_grad()
def attention_gram_apply(
    q: Tensor, k: Tensor, lse: Tensor, x: Tensor, **facts: Unpack[MaskFacts]
) -> tuple[Tensor, Tensor]:
    """The pair (A @ x, A^T @ A @ x) of every head, with A_ij = exp(score_ij - lse_i).

    Args:
        q: `[B, H, N, D]`, fp64, fp32, bf16 or fp16.
        k: `[B, Hk, S, D]`, the same dtypes. Hk divides H; query head h reads kv head h // (H // Hk).
        lse: `[B, H, N]`, of each row over its real keys, as `attention_apply` returns it; -inf makes a row of zeros.
        x: `[B, H, S, R]` per query head.
        facts: see `MaskFacts`; the same as for lse. `sinks` are added to the denominator here, so do not put them into
            lse.

    Returns:
        (`[B, H, N, R]`, `[B, H, S, R]`), summed and returned in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost for P visible (query, key) pairs a head: 2 H P (D + 2 R) FLOPs, and H P exponentials: on the CPU path the
    scores are computed once, where an `attention_apply` and an `attention_transpose_apply`, which the Triton path is
    made of, compute them twice (2 D + 2 R). Reads q, k, x once a
    head and writes H (N + S) R numbers; extra memory O((N + S) (D + R)) and one block of scores.
    Source: the matrix is the one whose eigenvalues are the squared singular values of A, as in Halko, Martinsson and
    Tropp 2011 (arXiv:0909.4061), section 4.5.

    Examples:
        >>> lse = interp_kernels.attention_apply(q, k).lse
        >>> ax, aax = interp_kernels.attention_gram_apply(q, k, lse, torch.ones(1, 4, 6, 1))
        >>> torch.allclose(ax, torch.ones(1, 4, 6, 1))  # rows of A sum to 1
        True
    """
    operation = "attention_gram_apply"
    resolved = resolve(operation, q, k, **facts)
    batch, heads, queries, keys = resolved.shape
    sizes = {"B": (batch,), "H": (heads,), "N": (queries,), "S": (keys,)}
    expect_float(operation, lse=lse, x=x)
    expect_shape(operation, "lse", lse, "B H N", sizes)
    expect_shape(operation, "x", x, "B H S R", sizes)
    return choose(PATHS, q)(q, k, lse, x, resolved)
