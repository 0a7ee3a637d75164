"""One decoded token over a cache that keeps its size: attend, count the attention received, let one token go."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import expect_float, expect_shape
from ..dispatch import choose, kernel
from . import cpu, reference
from .merging import Merge, Merged, absorb
from .slots import Evicted, StepCall

PATHS = {"reference": reference.decode_step, "cpu": cpu.decode_step, "triton": kernel(__name__, "decode_step")}

__all__ = ["Evicted", "Merge", "Merged", "Stepped", "decode_step"]


class Stepped(NamedTuple):
    """What `decode_step` returns."""

    z: Tensor
    """Attention output [B, H, 1, Dv], fp32 (fp64 for fp64 inputs)."""
    evicted: Evicted
    merged: Merged | None
    """None unless `merge` was given."""


@torch.no_grad()
def decode_step(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mass: Tensor,
    positions: Tensor,
    *,
    keep_oldest: int = 0,
    keep_newest: int = 0,
    padding: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    merge: Merge | None = None,
) -> Stepped:
    """Attention of one new token over n slots, the last of which holds its own key; then one token of each head goes.

    The token that goes is padding, else the one that has received the least attention, this step's included; of
    equals the one that stands latest in the text. The new token takes its slot, IN PLACE in `keys`, `values`, `mass`
    and `positions`: afterwards slots 0 .. n - 2 are the cache and the last is free for the next token. In a head
    where every token is to be kept, or where the new token itself goes, nothing moves and its slot is n - 1.

    Args:
        q: `[B, H, 1, D]`, fp64, fp32, bf16 or fp16.
        keys: `[B, Hs, n, D]`. Hs divides H; query head h reads stored head h // (H // Hs).
        values: `[B, Hs, n, Dv]`. They may be a view of the keys' first channels, `keys[..., :Dv]` (latent attention).
        mass: `[B, Hs, n]`, attention that each token has received so far, summed over the heads that read it, fp32
            (fp64 is allowed with fp64 q); what the last slot holds counts as 0.
        positions: integers `[B, Hs, n]`, where in the text each token stands; slots are in no particular order.
        keep_oldest: tokens at the text's beginning that never go.
        keep_newest: how many of the newest never go, counted back from the new token's position.
        padding: integers `[B]`; tokens at positions below it are padding on the text's left, which is not attended to,
            whatever it contains, and goes first. keep_oldest counts from it. The new token is none.
        scale: default D ** -0.5.
        softcap: see `MaskFacts`.
        sinks: learned logits `[H]`, see `MaskFacts`.
        merge: what becomes of the evicted token, see `Merge`; None: it is gone.

    Of keys, values, mass and positions every slot has its own memory: expanded tensors are refused.

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost: 2 H n (D + Dv) FLOPs; reads keys and values once, writes one token. A merge reads the keys once more.
    On a GPU it is two launches: the first cuts the slots into parts, reads each key and value once for all heads that
    share it, and writes raw scores and partial sums; the second, one program a stored head, finishes z, turns the
    scores into attention received, finds the token that goes and puts the new one in its place. A merge adds
    `nearest_key` for one token a head, and a few sums over one row.
    Source: H2O (Zhang et al. 2023, arXiv:2306.14048), algorithm 1; D2O (Wan et al. 2025, arXiv:2406.13035) merges.

    Examples:
        >>> mass, positions = torch.ones(1, 2, 6), torch.arange(6).repeat(1, 2, 1)
        >>> z, lost, merged = interp_kernels.decode_step(q[:, :, -1:], k, v, mass, positions, keep_newest=2)
        >>> z.shape, lost.position.shape
        (torch.Size([1, 4, 1, 8]), torch.Size([1, 2]))
    """
    operation = "decode_step"
    expect_float(operation, q=q, keys=keys, values=values, mass=mass)
    expect_shape(operation, "q", q, "B H N D", {"N": (1,)})
    batch, heads, _, size = q.shape
    expect_shape(operation, "keys", keys, "B Hs n D", {"B": (batch,), "D": (size,)})
    stored, n = keys.shape[1:3]
    if stored == 0 or heads % stored:
        raise ValueError(f"{operation}: {stored} stored heads do not divide {heads} query heads.")
    if n == 0:
        raise ValueError(f"{operation}: keys has no slot; the last one should hold the new token's key.")
    sizes = {"B": (batch,), "Hs": (stored,), "n": (n,), "H": (heads,)}
    expect_shape(operation, "values", values, "B Hs n Dv", sizes)
    expect_shape(operation, "mass", mass, "B Hs n", sizes)
    expect_shape(operation, "positions", positions, "B Hs n", sizes)
    for name, cache in (("keys", keys), ("values", values), ("mass", mass), ("positions", positions)):
        if any(stride == 0 and length > 1 for stride, length in zip(cache.stride(), cache.shape, strict=True)):
            raise ValueError(f"{operation}: {name} is written in place and must not be expanded; pass a copy.")
    if mass.dtype != torch.float32 and not mass.dtype == q.dtype == torch.float64:
        raise TypeError(f"{operation}: mass should be torch.float32, found {mass.dtype} with {q.dtype} q.")
    for name, tensor in (("positions", positions), ("padding", padding)):
        if tensor is not None and (tensor.is_floating_point() or tensor.dtype == torch.bool):
            raise TypeError(f"{operation}: {name} should hold integers, found {tensor.dtype}.")
    if padding is not None:
        expect_shape(operation, "padding", padding, "B", sizes)
    if sinks is not None:
        expect_float(operation, sinks=sinks)
        expect_shape(operation, "sinks", sinks, "H", sizes)
    if keep_oldest < 0 or keep_newest < 0:
        raise ValueError(
            f"{operation}: keep_oldest and keep_newest should be at least 0, found {keep_oldest} and {keep_newest}."
        )
    if merge is not None and not merge.own > 0:  # told before anything is changed in place
        raise ValueError(f"{operation}: own, the retained token's weight, should be above 0, found {merge.own}.")
    scale = size**-0.5 if scale is None else scale
    call = StepCall(q, keys, values, mass, positions, keep_oldest, keep_newest, padding, scale, softcap, sinks)
    z, evicted = choose(PATHS, q)(call)
    if values.data_ptr() == keys.data_ptr():  # the new token's key was written over the old value before it was read
        evicted = evicted._replace(value=evicted.key[..., : values.shape[-1]])
    merged = None if merge is None else absorb(merge, evicted, keys, values, positions, padding)
    return Stepped(z, evicted, merged)
