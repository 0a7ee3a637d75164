"""What Triton kernels are told, in a few tuples instead of dozens of numbers: tensors with their strides, mask facts.

Triton takes a tuple as one argument, and a kernel reads its fields by name. What is not there is None, strides count
elements, and what a kernel must know when it is compiled is a `tl.constexpr`. Nothing here is imported before a Triton
path runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .facts import Facts
from .launch import power_of_two, widened


def kind(arguments: tuple[Any, ...]) -> str:
    """What Triton's tuner tells tuples apart by, as it does tensors by their dtype: dtypes, constants, what is None."""
    return " ".join(map(_kind, arguments))


def _kind(argument: Any) -> str:
    if isinstance(argument, tuple):
        return f"({kind(argument)})"
    if isinstance(argument, tl.constexpr):
        return str(argument.value)
    return "number" if isinstance(argument, int | float) else str(getattr(argument, "dtype", argument))


class Strided(NamedTuple):
    """A tensor [B, H, T, R] as kernels read it, wherever its texts, heads, rows and columns lie."""

    x: Tensor
    batch: int
    head: int
    row: int
    column: int
    readers: int
    """How many query heads read one of its heads."""
    columns: tl.constexpr
    """R."""
    width: tl.constexpr
    """The power of two in which a kernel holds a row: R, and zeros."""
    widen: tl.constexpr
    """Whether what is read becomes fp32 before any arithmetic."""

    @property
    def dtype(self) -> str:
        return kind(self)


def strided(x: Tensor, heads: int | None = None, *, widen: bool | None = None, least: int = 16) -> Strided:
    """x [B, H, T, R] for a kernel.

    heads: of the queries that read it; None: each reads its own. widen: None means what x alone wants (`widened`).
    least: the smallest width.
    """
    readers = 1 if heads is None else heads // max(1, x.shape[1])
    width = 1 if least == 1 and x.shape[3] == 1 else power_of_two(x.shape[3], least)
    widen = widened(x) if widen is None else widen
    batch, head, row, column = x.stride()
    return Strided(
        x, batch, head, row, column, readers, tl.constexpr(x.shape[3]), tl.constexpr(width), tl.constexpr(widen)
    )


def whole_rows(x: Tensor) -> Tensor:
    """x [B, H, T, R] with each row in one piece, for kernels that read a row many times."""
    return x if x.stride(-1) == 1 else x.contiguous()


class MaskTuple(NamedTuple):
    """The mask facts of a call, and its sizes. Fields shared with `Facts` mean the same; masks are bytes."""

    heads: int
    queries: int
    keys: int
    causal: tl.constexpr
    offset: int
    window: int | None
    key_mask: Tensor | None
    query_mask: Tensor | None
    mask: Tensor | None
    mask_batch: int
    mask_head: int
    bias: Tensor | None
    bias_batch: int
    bias_head: int
    bias_row: int
    sinks: Tensor | None
    scale: float
    softcap: float | None

    @property
    def dtype(self) -> str:
        return kind(self)


def mask_tuple(facts: Facts) -> MaskTuple:
    """The facts for a kernel; an axis that a mask or a bias shares has stride 0."""
    _, heads, queries, keys = facts.shape
    mask = None if facts.mask is None else facts.mask.contiguous().view(torch.uint8)
    bias = None if facts.bias is None else facts.bias.float().contiguous()
    return MaskTuple(
        heads, queries, keys, tl.constexpr(facts.causal), facts.offset, facts.window,
        keep_bytes(facts.key_mask), keep_bytes(facts.query_mask),
        mask, _stride(mask, 0), _stride(mask, 1), bias, _stride(bias, 0), _stride(bias, 1), _stride(bias, 2),
        None if facts.sinks is None else facts.sinks.float().contiguous(), facts.scale, facts.softcap,
    )  # fmt: skip


def _stride(x: Tensor | None, axis: int) -> int:
    return 0 if x is None or x.shape[axis] == 1 else x.stride(axis)


def keep_bytes(mask: Tensor | None) -> Tensor | None:
    """A mask [B, N], True for what is kept, as `real_rows` reads it."""
    return None if mask is None else mask.contiguous().view(torch.uint8)


class Unfinished(NamedTuple):
    """What programs that attended to a part of the tokens each leave to the one that puts the parts together."""

    read: Tensor
    """Sum of 2^(score - peak) times the value, for every row and part."""
    peak: Tensor
    """The largest score, in units of log 2."""
    total: Tensor
    """Sum of 2^(score - peak)."""
    scores: Tensor | None
    """Every score, in units of log 2; None where nobody asks for the attention received."""
