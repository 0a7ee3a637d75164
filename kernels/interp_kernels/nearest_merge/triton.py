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

from ..arguments import keep_bytes, strided
from ..launch import config, split, tuned, widened
from ..score_block import head_start, load_rows

PROGRAMS = 512
"""As many as keep a large GPU busy; with fewer, the retained keys are cut into slices."""
LEAST_SLICE = 128
"""Retained keys below which a slice is not worth a program."""


@tuned([config(keys=64), config(keys=128, warps=8), config(keys=32, stages=1)], key=["BLOCK_QUERIES"])
@triton.jit
def _nearest(
    Evicted, Retained, EvictedMask, RetainedMask, Similarity, Target, heads, tokens, keys, length, slices,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Evicted keys ask, retained ones answer."""
    part, flat = tl.program_id(1), tl.program_id(2).to(tl.int64)
    batch, head = flat // heads, flat % heads
    rows = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    live = rows < tokens
    if EvictedMask is not None:
        live = live & (tl.load(EvictedMask + flat * tokens + rows, mask=live, other=0) != 0)
    e = load_rows(Evicted, head_start(Evicted, batch, head), rows, live)
    live = live & (_length(e) < float("inf"))  # an infinity; NaN shows in the cosines
    best = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    target = tl.full([BLOCK_QUERIES], -1, tl.int32)
    k_start = head_start(Retained, batch, head)
    last = tl.minimum(keys, (part + 1) * length)
    for start in range(part * length, last, BLOCK_KEYS):
        places = start + tl.arange(0, BLOCK_KEYS)
        real = places < last
        if RetainedMask is not None:
            real = real & (tl.load(RetainedMask + flat * keys + places, mask=real, other=0) != 0)
        k = load_rows(Retained, k_start, places, real)
        cosines = tl.dot(e, tl.trans(k), input_precision="ieee") / _length(k)[None, :]
        cosines = tl.where(real[None, :] & (cosines == cosines), cosines, float("-inf"))
        highest, winner = tl.max(cosines, 1, return_indices=True)  # of equals the first
        better = highest > best
        best = tl.where(better, highest, best)
        target = tl.where(better, start + winner, target)
    best = tl.where(live, best / _length(e), float("-inf"))
    place = (flat * slices + part) * tokens + rows
    tl.store(Similarity + place, best, mask=rows < tokens)
    tl.store(Target + place, tl.where(live, target, -1), mask=rows < tokens)


@triton.jit
def _length(x):
    """Lengths of the rows of x, kept off 0 for a division."""
    wide = x.to(tl.float32)
    return tl.maximum(tl.sqrt(tl.sum(wide * wide, 1)), 1e-12)


def nearest_key(
    evicted: Tensor, retained: Tensor, evicted_mask: Tensor | None, retained_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(target, similarity) as documented in the package."""
    batch, heads, tokens, _ = evicted.shape
    keys, widen = retained.shape[2], widened(evicted, retained)
    # exact products in fp32 are unrolled in full: with 64 rows they would take a minute to compile
    block = 16 if tokens <= 16 else 32 if evicted.element_size() == 4 else 64
    blocks = triton.cdiv(tokens, block)
    slices, length = split(keys, batch * heads * blocks, LEAST_SLICE, PROGRAMS)
    similarity = evicted.new_empty(batch, heads, slices, tokens, dtype=torch.float32)
    target = torch.empty_like(similarity, dtype=torch.int32)
    if similarity.numel():
        _nearest[blocks, slices, batch * heads](
            strided(evicted, widen=widen), strided(retained, widen=widen), keep_bytes(evicted_mask),
            keep_bytes(retained_mask), similarity, target, heads, tokens, keys, length, slices, BLOCK_QUERIES=block,
        )  # fmt: skip
    similarity, best = similarity.max(2, keepdim=True)  # of equal slices the first
    return target.gather(2, best)[:, :, 0].long(), similarity[:, :, 0]


@tuned([config(tokens=4, warps=1), config(tokens=8, warps=2), config(tokens=16, warps=4)])
@triton.jit
def _merge(X, Evicted, Order, Starts, Weight, Counted, Out, heads, tokens, own, BLOCK_TOKENS: tl.constexpr):
    """`tokens` are the evicted ones of a head; a program is one retained token."""
    place, flat, retained = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    batch, head = flat // heads, flat % heads
    channel = tl.arange(0, X.width)
    first = tl.load(Starts + flat * (retained + 1) + place)
    last = tl.load(Starts + flat * (retained + 1) + place + 1)
    e_start = head_start(Evicted, batch, head)
    added = tl.zeros([X.width], tl.float32)
    counted = tl.zeros([BLOCK_TOKENS], tl.float32)
    for start in range(first, last, BLOCK_TOKENS):
        at = start + tl.arange(0, BLOCK_TOKENS)
        live = at < last
        token = tl.load(Order + flat * tokens + at, mask=live, other=0)
        weight = tl.load(Weight + flat * tokens + token, mask=live, other=0.0)
        counted += tl.load(Counted + flat * tokens + token, mask=live, other=0.0)
        added += tl.sum(weight[:, None] * load_rows(Evicted, e_start, token, live).to(tl.float32), 0)
    mine = head_start(X, batch, head) + place * X.row + channel * X.column
    x = tl.load(mine, mask=channel < X.columns, other=0.0).to(tl.float32)
    mean = (own * x + added) / (own + tl.sum(counted, 0))
    new = tl.where(last > first, mean, x)
    out = Out + (flat * retained + place) * X.columns + channel
    tl.store(out, new.to(Out.dtype.element_ty), mask=channel < X.columns)


def merge_tokens(
    x: Tensor, evicted: Tensor, target: Tensor, weight: Tensor, counted: Tensor | None, own: float, merged: Tensor
) -> Tensor:
    """New x as documented in the package."""
    batch, heads, retained, _ = x.shape
    new = torch.empty_like(x, memory_format=torch.contiguous_format)
    goes, order = target.where(merged, retained).contiguous().sort(dim=-1, stable=True)  # what is not merged comes last
    bounds = torch.arange(retained + 1, device=x.device).expand(batch, heads, -1).contiguous()
    starts = torch.searchsorted(goes, bounds, out_int32=True)
    weight = weight.contiguous()
    counted = weight if counted is None else counted.contiguous()
    if new.numel():
        _merge[retained, batch * heads](
            strided(x), strided(evicted), order, starts, weight, counted, new, heads, evicted.shape[2], float(own)
        )
    return new
