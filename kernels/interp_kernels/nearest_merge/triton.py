"""Nearest key and merge on a GPU.

`nearest_key` is one launch: a program holds a block of evicted keys, walks a slice of the retained ones and keeps the
best so far. With few evicted keys the retained ones are cut into slices, so that the GPU is busy; the slices' winners
are compared afterwards. `merge_tokens` sorts the evicted tokens by target and is then one launch: a program adds up
what goes into one retained token. Neither needs atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import config, exact, power_of_two, split, tuned
from ..score_block import keep_bytes

PROGRAMS = 512
"""As many as keep a large GPU busy; with fewer, the retained keys are cut into slices."""
LEAST_SLICE = 128
"""Retained keys below which a slice is not worth a program."""


@tuned([config(BLOCK_R=64), config(BLOCK_R=128, warps=8), config(BLOCK_R=32, stages=1)], key=["D", "BLOCK_E"])
@triton.jit
def _nearest(
    Evicted, Retained, EvictedMask, RetainedMask, Similarity, Target, H, E, R, length, slices,
    e_batch, e_head, e_row, e_channel, r_batch, r_head, r_row, r_channel,
    D: tl.constexpr, WIDTH: tl.constexpr, IN_FP32: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    part, flat = tl.program_id(1), tl.program_id(2).to(tl.int64)
    batch, head = flat // H, flat % H
    rows = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    channel = tl.arange(0, WIDTH)
    live = rows < E
    if EvictedMask is not None:
        live = live & (tl.load(EvictedMask + flat * E + rows, mask=live, other=0) != 0)
    own = rows.to(tl.int64)[:, None] * e_row + channel[None, :] * e_channel
    shown = live[:, None] & (channel < D)[None, :]
    e = tl.load(Evicted + batch * e_batch + head * e_head + own, mask=shown, other=0.0)
    if IN_FP32:
        e = e.to(tl.float32)
    live = live & (_length(e) < float("inf"))  # an infinity; NaN shows in the cosines
    best = tl.full([BLOCK_E], float("-inf"), tl.float32)
    target = tl.full([BLOCK_E], -1, tl.int32)
    keys = Retained + batch * r_batch + head * r_head
    last = tl.minimum(R, (part + 1) * length)
    for start in range(part * length, last, BLOCK_R):
        places = start + tl.arange(0, BLOCK_R)
        real = places < last
        if RetainedMask is not None:
            real = real & (tl.load(RetainedMask + flat * R + places, mask=real, other=0) != 0)
        theirs = places.to(tl.int64)[:, None] * r_row + channel[None, :] * r_channel
        k = tl.load(keys + theirs, mask=real[:, None] & (channel < D)[None, :], other=0.0)
        if IN_FP32:
            k = k.to(tl.float32)
        cosines = tl.dot(e, tl.trans(k), input_precision="ieee") / _length(k)[None, :]
        cosines = tl.where(real[None, :] & (cosines == cosines), cosines, float("-inf"))
        highest, winner = tl.max(cosines, 1, return_indices=True)  # of equals the first
        better = highest > best
        best = tl.where(better, highest, best)
        target = tl.where(better, start + winner, target)
    best = tl.where(live, best / _length(e), float("-inf"))
    place = (flat * slices + part) * E + rows
    tl.store(Similarity + place, best, mask=rows < E)
    tl.store(Target + place, tl.where(live, target, -1), mask=rows < E)


@triton.jit
def _length(x):
    """Lengths of the rows of x, kept off 0 for a division."""
    wide = x.to(tl.float32)
    return tl.maximum(tl.sqrt(tl.sum(wide * wide, 1)), 1e-12)


def nearest_key(
    evicted: Tensor, retained: Tensor, evicted_mask: Tensor | None, retained_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(target, similarity) as documented in the package."""
    batch, heads, tokens, size = evicted.shape
    keys = retained.shape[2]
    # exact products in fp32 are unrolled in full: with 64 rows they would take a minute to compile
    block = 16 if tokens <= 16 else 32 if evicted.element_size() == 4 else 64
    blocks = triton.cdiv(tokens, block)
    slices, length = split(keys, batch * heads * blocks, LEAST_SLICE, PROGRAMS)
    similarity = evicted.new_empty(batch, heads, slices, tokens, dtype=torch.float32)
    target = torch.empty_like(similarity, dtype=torch.int32)
    if similarity.numel():
        _nearest[blocks, slices, batch * heads](
            evicted, retained, keep_bytes(evicted_mask), keep_bytes(retained_mask), similarity, target,
            heads, tokens, keys, length, slices, *evicted.stride(), *retained.stride(),
            D=size, WIDTH=power_of_two(size), IN_FP32=exact(evicted), BLOCK_E=block,
        )  # fmt: skip
    similarity, best = similarity.max(2, keepdim=True)  # of equal slices the first
    return target.gather(2, best)[:, :, 0].long(), similarity[:, :, 0]


@tuned([config(BLOCK=4, warps=1), config(BLOCK=8, warps=2), config(BLOCK=16, warps=4)], key=["D"])
@triton.jit
def _merge(
    X, Evicted, Order, Starts, Weight, Counted, Out, H, R, E, own,
    x_batch, x_head, x_row, x_channel, e_batch, e_head, e_row, e_channel,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place, flat = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    batch, head = flat // H, flat % H
    channel = tl.arange(0, WIDTH)
    first = tl.load(Starts + flat * (R + 1) + place)
    last = tl.load(Starts + flat * (R + 1) + place + 1)
    added = tl.zeros([WIDTH], tl.float32)
    counted = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = at < last
        token = tl.load(Order + flat * E + at, mask=live, other=0)
        weight = tl.load(Weight + flat * E + token, mask=live, other=0.0)
        counted += tl.load(Counted + flat * E + token, mask=live, other=0.0)
        rows = batch * e_batch + head * e_head + token[:, None] * e_row + channel[None, :] * e_channel
        shown = live[:, None] & (channel < D)[None, :]
        e = tl.load(Evicted + rows, mask=shown, other=0.0).to(tl.float32)
        added += tl.sum(weight[:, None] * e, 0)
    mine = batch * x_batch + head * x_head + place * x_row + channel * x_channel
    x = tl.load(X + mine, mask=channel < D, other=0.0).to(tl.float32)
    mean = (own * x + added) / (own + tl.sum(counted, 0))
    new = tl.where(last > first, mean, x)
    tl.store(Out + (flat * R + place) * D + channel, new.to(Out.dtype.element_ty), mask=channel < D)


def merge_tokens(
    x: Tensor, evicted: Tensor, target: Tensor, weight: Tensor, counted: Tensor | None, own: float, merged: Tensor
) -> Tensor:
    """New x as documented in the package."""
    batch, heads, retained, size = x.shape
    new = torch.empty_like(x, memory_format=torch.contiguous_format)
    goes, order = target.where(merged, retained).contiguous().sort(dim=-1, stable=True)  # what is not merged comes last
    bounds = torch.arange(retained + 1, device=x.device).expand(batch, heads, -1).contiguous()
    starts = torch.searchsorted(goes, bounds, out_int32=True)
    weight = weight.contiguous()
    counted = weight if counted is None else counted.contiguous()
    if new.numel():
        _merge[retained, batch * heads](
            x, evicted, order, starts, weight, counted, new,
            heads, retained, evicted.shape[2], float(own), *x.stride(), *evicted.stride(),
            D=size, WIDTH=power_of_two(size),
        )  # fmt: skip
    return new
