"""A @ V and the statistics of A's rows and columns, without A."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from ..checks import expect_float, expect_shape
from ..dispatch import choose, kernel
from ..facts import MaskFacts, resolve
from . import cpu, reference

__all__ = ["Attended", "attention_apply"]

PATHS = {
    "reference": reference.attention_apply,
    "cpu": cpu.attention_apply,
    "triton": kernel(__name__, "attention_apply"),
}
STATISTICS = ("lse", "entropy", "square", "column_mass")


class Attended(NamedTuple):
    """What `attention_apply` returns; all in fp32 (fp64 where q is fp64)."""

    z: Tensor | None
    """A @ v, [B, H, N, R]; None without v."""
    lse: Tensor
    """Log of the sum of exp(score) over visible real keys, without sinks, [B, H, N], nats; -inf for an empty row."""
    entropy: Tensor | None
    """-sum_j A_ij log A_ij, [B, H, N], nats; None unless asked for. With sinks the dropped column has no part in it."""
    square: Tensor | None
    """sum_j A_ij ** 2, [B, H, N]; its inverse is the number of keys attended to. None unless asked for."""
    column_mass: Tensor | None
    """sum_i A_ij, [B, H, S]: the attention that each key receives. None unless asked for."""


@torch.no_grad()
def attention_apply(
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    *,
    statistics: Sequence[str] = ("lse",),
    **facts: Unpack[MaskFacts],
) -> Attended:
    """Attention output and sums over rows and columns: z = A @ v with A = softmax(scale * q @ k^T + mask).

    Args:
        q: `[B, H, N, D]`, fp64, fp32, bf16 or fp16.
        k: `[B, Hk, S, D]`, the same dtypes. Hk divides H; query head h reads kv head h // (H // Hk).
        v: `[B, Hk or H, S, R]`, any R, or None.
        statistics: any of "lse" (always returned), "entropy", "square", "column_mass".
        facts: see `MaskFacts`.

    Returns:
        `Attended`, summed and returned in fp32 (fp64 where q is fp64, whatever k and v are).

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost for P visible (query, key) pairs a head: 2 H P (D + R) FLOPs, and H P exponentials; reads q, k, v once a head
    and writes H (N (R + 3) + S) numbers; extra memory O((N + S) (D + R)) and one block of scores.
    "column_mass" takes a second pass over the scores on the Triton path.
    Source: Dao et al. 2022, "FlashAttention" (arXiv:2205.14135), for computing in blocks with lse kept.

    Examples:
        >>> found = interp_kernels.attention_apply(q, k, v, statistics=["column_mass"])
        >>> found.z.shape, found.column_mass.shape
        (torch.Size([1, 4, 6, 8]), torch.Size([1, 4, 6]))
    """
    operation = "attention_apply"
    resolved = resolve(operation, q, k, **facts)
    batch, heads, _, keys = resolved.shape
    if v is not None:
        expect_float(operation, v=v)
        sizes = {"B": (batch,), "Hk|H": (k.shape[1], heads), "S": (keys,)}
        expect_shape(operation, "v", v, "B Hk|H S R", sizes)
    unknown = [name for name in statistics if name not in STATISTICS]
    if isinstance(statistics, str) or unknown:
        raise ValueError(f"{operation}: statistics should be a list of {', '.join(STATISTICS)}, found {statistics!r}.")
    return Attended(*choose(PATHS, q)(q, k, v, statistics, resolved))
