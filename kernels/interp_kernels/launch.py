"""Block sizes of Triton kernels: tuned once on a GPU and kept on disk, the first of a table under the interpreter.

Everything here imports triton; nothing of it is imported before a Triton path runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from .dispatch import interpreted


def config(warps: int = 4, stages: int = 2, **blocks: int) -> triton.Config:
    """One row of a table of block sizes."""
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


class tuned:
    """Choose a kernel's block sizes from `table`: `@tuned([config(BLOCK=64), ...], key=["D"])` above `@triton.jit`.

    On a GPU the fastest row is found for every new combination of the arguments in `key` (and dtypes), and kept in
    Triton's cache folder. The interpreter cannot time anything: it takes the first row.
    """

    def __init__(self, table: Sequence[triton.Config], key: Sequence[str]) -> None:
        self.table, self.key = list(table), list(key)

    def __call__(self, function: Any) -> Any:
        if interpreted():
            return _Fixed(function, self.table[0])
        return triton.autotune(self.table, self.key, cache_results=True)(function)


class _Fixed:
    """A kernel with block sizes filled in, launched as an autotuned one is: `kernel[grid](...)`."""

    def __init__(self, function: Any, chosen: triton.Config) -> None:
        self.function, self.blocks = function, chosen.kwargs

    def __getitem__(self, grid: tuple[int, ...] | Callable[[dict], tuple[int, ...]]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.function[grid](*args, **kwargs, **self.blocks)

        return launch


def split(total: int, others: int, least: int, programs: int) -> tuple[int, int]:
    """(parts, length of a part) into which programs cut `total` tokens, where `others` programs would run without.

    As many parts as it takes to keep `programs` programs busy, but none shorter than `least`. It depends on shapes
    alone, so that a call repeated gives the same bits.
    """
    parts = max(1, min(programs // max(1, others), triton.cdiv(total, least)))
    length = triton.cdiv(total, parts)
    return triton.cdiv(total, length), length


def exact(x: torch.Tensor) -> bool:
    """Whether a kernel must widen x to fp32 before any arithmetic: the interpreter computes nonsense in bf16."""
    return interpreted() and x.dtype == torch.bfloat16


def power_of_two(n: int, least: int = 16) -> int:
    """The block that holds n values: Triton wants powers of two, and its matrix products at least 16."""
    return max(least, triton.next_power_of_2(n))
