"""Merging evicted tokens into retained ones: whose key is most similar, and the weighted mean of the two."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import accumulator, expect_bool, expect_float, expect_shape
from ..dispatch import Paths, choose, kernel
from . import cpu, reference

__all__ = ["Nearest", "merge_tokens", "nearest_key"]

PATHS = {
    "reference": reference.nearest_key,
    "cpu": cpu.nearest_key,
    "triton": kernel(__name__, "nearest_key"),
}
MERGE_PATHS: Paths[Tensor] = {
    "reference": reference.merge_tokens,
    "cpu": cpu.merge_tokens,
    "triton": kernel(__name__, "merge_tokens"),
}


class Nearest(NamedTuple):
    """What `nearest_key` returns."""

    target: Tensor
    """[B, H, E] int64: the place of the most similar retained key, of equals the first; -1 where there is none."""
    similarity: Tensor
    """[B, H, E]: its cosine, fp32 (fp64 for fp64 inputs); -inf where there is none."""


@torch.no_grad()
def nearest_key(
    evicted: Tensor, retained: Tensor, evicted_mask: Tensor | None = None, retained_mask: Tensor | None = None
) -> Nearest:
    """The most similar retained key of every evicted one, by the cosine of the two vectors.

    Args:
        evicted: `[B, H, E, D]`, keys, fp64, fp32, bf16 or fp16. A key of zeros has cosine 0 with all others.
        retained: `[B, H, R, D]`, keys of the same dtype.
        evicted_mask, retained_mask: bool `[B, H, E]` and `[B, H, R]`, False for what does not take part, whatever it
            contains; None: everything takes part.

    A key that holds NaN or infinity has no cosine: it takes no part either.
    Returns `Nearest`. "Equals" are cosines that agree to the last bit as they were summed.

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost: 2 B H E R D FLOPs; reads the retained keys once for every block of evicted ones; memory one block of evicted
    keys by R (on a GPU: one candidate for every evicted key and slice of the retained ones), never E by R.
    Source: D2O (Wan et al. 2025, arXiv:2406.13035), section 3.3.

    Examples:
        >>> retained = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
        >>> interp_kernels.nearest_key(torch.tensor([[[[0.1, 3.0]]]]), retained).target
        tensor([[[1]]])
    """
    operation = "nearest_key"
    expect_float(operation, evicted=evicted, retained=retained)
    if evicted.dtype != retained.dtype:
        raise TypeError(
            f"{operation}: evicted and retained should have one dtype, found {evicted.dtype} and {retained.dtype}."
        )
    expect_shape(operation, "evicted", evicted, "B H evicted D", {})
    batch, heads, tokens, size = evicted.shape
    sizes = {"B": (batch,), "H": (heads,), "D": (size,), "evicted": (tokens,)}
    expect_shape(operation, "retained", retained, "B H retained D", sizes)
    sizes["retained"] = (retained.shape[2],)
    for name, mask, pattern in (
        ("evicted_mask", evicted_mask, "B H evicted"),
        ("retained_mask", retained_mask, "B H retained"),
    ):
        if mask is not None:
            expect_bool(operation, **{name: mask})
            expect_shape(operation, name, mask, pattern, sizes)
    if retained.shape[2] == 0:
        none = torch.full(evicted.shape[:3], -1, device=evicted.device)
        return Nearest(none, torch.full(none.shape, -torch.inf, dtype=accumulator(evicted), device=evicted.device))
    return Nearest(*choose(PATHS, evicted)(evicted, retained, evicted_mask, retained_mask))


@torch.no_grad()
def merge_tokens(
    x: Tensor,
    evicted: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    counted: Tensor | None = None,
    own: float = 1.0,
    merged: Tensor | None = None,
) -> Tensor:
    """Retained tokens after evicted ones were merged into them.

    With M_j the evicted tokens that are merged into token j,

        new_j = (own * x_j + sum over i in M_j of weight_i * evicted_i) / (own + sum over i in M_j of counted_i)

    and tokens into which nothing is merged stay as they are, to the last bit. With u the similarity, D2O's equations
    are `weight=u.exp(), own=e`, whose weights sum to 1; its release is `weight=u, counted=torch.ones_like(u)`.

    Args:
        x: `[B, H, R, D]`, keys or values that are retained, fp64, fp32, bf16 or fp16.
        evicted: `[B, H, E, D]`, those that are evicted.
        target: integers `[B, H, E]`, the place in x that an evicted token goes to; one outside of 0 .. R - 1 is not
            merged.
        weight: `[B, H, E]`, factor of every evicted token.
        counted: `[B, H, E]`, what it adds to the divisor; None: `weight`.
        own: the retained token's own weight, above 0.
        merged: bool `[B, H, E]`, which evicted tokens are merged; what the others contain does not matter. None: all.

    Returns:
        A new tensor like x; sums are in fp32 (fp64 for fp64 x) and in the order of the evicted tokens, so that equal
        inputs give equal results to the last bit.

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost: 2 B H E D FLOPs and one stable sort of the targets; reads x and the merged tokens once, writes x once.
    Source: D2O (Wan et al. 2025, arXiv:2406.13035), equations 11 and 12, and `weight` of its release.

    Examples:
        >>> x, evicted = torch.tensor([[[[2.0], [10.0]]]]), torch.tensor([[[[4.0]]]])
        >>> interp_kernels.merge_tokens(x, evicted, target=torch.tensor([[[0]]]), weight=torch.ones(1, 1, 1))
        tensor([[[[ 3.],
                  [10.]]]])
    """
    operation = "merge_tokens"
    expect_float(operation, x=x, evicted=evicted, weight=weight)
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"{operation}: target should hold integers, places in x, found {target.dtype}.")
    expect_shape(operation, "x", x, "B H retained D", {})
    batch, heads, retained, size = x.shape
    sizes = {"B": (batch,), "H": (heads,), "D": (size,)}
    expect_shape(operation, "evicted", evicted, "B H evicted D", sizes)
    sizes["evicted"] = (evicted.shape[2],)
    for name, tensor in (("target", target), ("weight", weight), ("counted", counted), ("merged", merged)):
        if tensor is not None:
            expect_shape(operation, name, tensor, "B H evicted", sizes)
    if counted is not None:
        expect_float(operation, counted=counted)
    if merged is not None:
        expect_bool(operation, merged=merged)
    if not own > 0:
        raise ValueError(f"{operation}: own, the retained token's weight, should be above 0, found {own}.")
    there = (target >= 0) & (target < retained)
    merged = there if merged is None else merged & there
    weights = (weight.to(accumulator(x)), None if counted is None else counted.to(accumulator(x)))
    return choose(MERGE_PATHS, x)(x, evicted, target.long(), *weights, own, merged)
