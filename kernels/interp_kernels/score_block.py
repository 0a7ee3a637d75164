"""What Triton's attention kernels share: blocks of a head's rows, blocks of masked scores, and the mask facts."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .facts import Facts
from .launch import exact

LOG2E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1e30)  # below every score; finite, so that differences of two are 0 and not NaN


def fact_arguments(facts: Facts) -> dict[str, Any]:
    """The keyword arguments that `score_block` and `key_range` want, in every kernel under the same names."""
    mask = facts.mask
    if mask is not None:
        mask = mask.contiguous().view(torch.uint8)
    bias = None if facts.bias is None else facts.bias.float().contiguous()
    return {
        "KeyMask": keep_bytes(facts.key_mask),
        "QueryMask": keep_bytes(facts.query_mask),
        "Mask": mask,
        "mask_batch": 0 if mask is None or mask.shape[0] == 1 else mask.stride(0),
        "mask_head": 0 if mask is None or mask.shape[1] == 1 else mask.stride(1),
        "Bias": bias,
        "bias_batch": 0 if bias is None or bias.shape[0] == 1 else bias.stride(0),
        "bias_head": 0 if bias is None or bias.shape[1] == 1 else bias.stride(1),
        "bias_row": 0 if bias is None or bias.shape[2] == 1 else bias.stride(2),
        "scale": facts.scale,
        "softcap": facts.softcap,
        "offset": facts.offset,
        "window": facts.window,
        "CAUSAL": facts.causal,
    }


def keep_bytes(mask: Tensor | None) -> Tensor | None:
    """A mask [B, N], True for what is kept, as `real_rows` reads it."""
    return None if mask is None else mask.contiguous().view(torch.uint8)


def strided(x: Tensor) -> Tensor:
    """x [B, H, T, R] as `load_rows` reads it: each row in one piece, the other axes as they come."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strides(**tensors: Tensor | None) -> dict[str, int]:
    """q=tensor [B, H, T, R] -> q_batch, q_head, q_row: how far apart its texts, heads and rows lie; 0 for None."""
    return {
        f"{name}_{axis}": 0 if x is None else x.stride(i)
        for name, x in tensors.items()
        for i, axis in enumerate(("batch", "head", "row"))
    }


def in_fp32(*tensors: Tensor | None) -> bool:
    """Whether a kernel multiplies these as fp32: one is, they differ in dtype, or Triton has no product for theirs."""
    given = [x for x in tensors if x is not None]
    halves = {x.dtype for x in given} in ({torch.float16}, {torch.bfloat16})
    return bool(given) and (not halves or exact(given[0]))


@triton.jit
def head_start(X, batch, head, batch_stride, head_stride):
    """Where a head of X begins, in 64 bits: products of sizes may exceed 32."""
    return X + tl.cast(batch, tl.int64) * batch_stride + tl.cast(head, tl.int64) * head_stride


@triton.jit
def load_rows(X, rows, real, row_stride, size, WIDTH: tl.constexpr, IN_FP32: tl.constexpr):
    """Rows [rows, WIDTH] of the head that begins at X; zeros where `real` is False and from column `size` on."""
    column = tl.arange(0, WIDTH)
    cells = rows.to(tl.int64)[:, None] * row_stride + column[None, :]
    x = tl.load(X + cells, mask=real[:, None] & (column < size)[None, :], other=0.0)
    if IN_FP32:
        x = x.to(tl.float32)
    return x


@triton.jit
def real_rows(batch, rows, N, Keep):
    """Which of `rows` exist and are not padding; Keep is [B, N] bytes or None."""
    real = rows < N
    if Keep is not None:
        real = real & (tl.load(Keep + batch * N + rows, mask=real, other=0) != 0)
    return real


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
def row_range(first_key, last_key, N, offset, window, CAUSAL: tl.constexpr):
    """(first, past-the-last) row that may see any of the keys first..last."""
    low, high = 0, N
    if CAUSAL:
        low = tl.maximum(0, first_key - offset)
    if window is not None:
        high = tl.minimum(N, tl.maximum(0, last_key - offset + window))
    return low, high


@triton.jit
def score_block(
    q, k, batch, head, rows, keys, N, S,
    KeyMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
    scale, softcap, offset, window, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Scores [rows, keys] of q [rows, D] and k [keys, D] in units of log 2; -inf where the query does not see the key.

    Padding may hold anything, NaN too: what is hidden is replaced, not added to.
    """
    products = tl.dot(q, tl.trans(k), input_precision="ieee")
    seen = (rows < N)[:, None] & real_rows(batch, keys, S, KeyMask)[None, :]
    return _masked(
        products, seen, batch, head, rows[:, None], keys[None, :], S,
        Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row, scale, softcap, offset, window, CAUSAL,
    )  # fmt: skip


@triton.jit
def score_block_transposed(
    q, k, batch, head, rows, keys, N, S,
    KeyMask, Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
    scale, softcap, offset, window, CAUSAL: tl.constexpr,
):  # fmt: skip
    """`score_block` as [keys, rows]: a product that sums over rows then takes it as it is, without a transposition."""
    products = tl.dot(k, tl.trans(q), input_precision="ieee")
    seen = (rows < N)[None, :] & real_rows(batch, keys, S, KeyMask)[:, None]
    return _masked(
        products, seen, batch, head, rows[None, :], keys[:, None], S,
        Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row, scale, softcap, offset, window, CAUSAL,
    )  # fmt: skip


@triton.jit
def capped(scores, softcap):
    """softcap * tanh(scores / softcap); scores themselves where softcap is None."""
    if softcap is not None:
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
    return scores


@triton.jit
def raised(top, candidate):
    """Of a running softmax: (the new top, the same to subtract from scores, by what sums under the old top shrink).

    What has seen nothing so far has top -inf; 0 is subtracted there, and its sums stay 0.
    """
    higher = tl.maximum(top, candidate)
    level = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, level, tl.exp2(top - level)


@triton.jit
def _masked(
    products, seen, batch, head, rows, keys, S,
    Mask, mask_batch, mask_head, Bias, bias_batch, bias_head, bias_row,
    scale, softcap, offset, window, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Scores from products of either shape; rows, keys and seen broadcast to it."""
    scores = capped(products * scale, softcap)
    distance = rows + offset - keys
    if CAUSAL:
        seen = seen & (distance >= 0)
    if window is not None:
        seen = seen & (distance < window)
    if Mask is not None:
        cells = rows.to(tl.int64) * S + keys
        seen = seen & (tl.load(head_start(Mask, batch, head, mask_batch, mask_head) + cells, mask=seen, other=0) != 0)
    if Bias is not None:
        cells = rows.to(tl.int64) * bias_row + keys
        scores += tl.load(head_start(Bias, batch, head, bias_batch, bias_head) + cells, mask=seen, other=0.0)
    return tl.where(seen, scores * LOG2E, float("-inf"))
