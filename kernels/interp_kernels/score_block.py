"""One block of masked scores inside a Triton kernel, and the mask facts as kernel arguments."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .facts import Facts

LOG2E = tl.constexpr(1.4426950408889634)


def fact_arguments(facts: Facts) -> dict[str, Any]:
    """The keyword arguments that `score_block` and `key_range` want, in every kernel under the same names."""
    mask = facts.mask
    if mask is not None:
        mask = mask.expand(mask.shape[0], mask.shape[1], *facts.shape[2:]).contiguous().view(torch.uint8)
    return {
        "KeyMask": keep_bytes(facts.key_mask),
        "QueryMask": keep_bytes(facts.query_mask),
        "Mask": mask,
        "mask_batch": 0 if mask is None or mask.shape[0] == 1 else mask.stride(0),
        "mask_head": 0 if mask is None or mask.shape[1] == 1 else mask.stride(1),
        "scale": facts.scale,
        "softcap": facts.softcap,
        "offset": facts.offset,
        "window": facts.window,
        "CAUSAL": facts.causal,
    }


def keep_bytes(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask [B, N], True for what is kept, as `real_rows` reads it."""
    return None if mask is None else mask.contiguous().view(torch.uint8)


@triton.jit
def key_range(first_row, last_row, S, offset, window, CAUSAL: tl.constexpr):
    """(first, past-the-last) key that rows first..last may see."""
    low, high = 0, S
    if CAUSAL:
        high = tl.minimum(S, tl.maximum(0, last_row + offset + 1))
    if window is not None:
        low = tl.maximum(0, first_row + offset - window + 1)
    return low, high


@triton.jit
def real_rows(batch, rows, N, Keep):
    """Which of `rows` exist and are not padding; Keep is [B, N] bytes or None."""
    real = rows < N
    if Keep is not None:
        real = real & (tl.load(Keep + batch * N + rows, mask=real, other=0) != 0)
    return real


@triton.jit
def score_block(
    q, k, batch, head, rows, keys, N, S,
    KeyMask, Mask, mask_batch, mask_head, scale, softcap, offset, window, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Scores [rows, keys] of q [rows, D] and k [keys, D] in units of log 2; -inf where the query does not see the key.

    Padding may hold anything, NaN too: what is hidden is replaced, not added to.
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if softcap is not None:
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)  # tanh
    seen = (rows < N)[:, None] & real_rows(batch, keys, S, KeyMask)[None, :]
    distance = rows[:, None] + offset - keys[None, :]
    if CAUSAL:
        seen = seen & (distance >= 0)
    if window is not None:
        seen = seen & (distance < window)
    if Mask is not None:
        cells = batch * mask_batch + head * mask_head + rows[:, None] * S + keys[None, :]
        seen = seen & (tl.load(Mask + cells, mask=seen, other=0) != 0)
    return tl.where(seen, scores * LOG2E, float("-inf"))
