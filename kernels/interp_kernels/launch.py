"""How Triton kernels are launched: block sizes, tuned once on a GPU, and work cut into parts until a GPU is busy.

Everything here imports triton; nothing of it is imported before a Triton path runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from .dispatch import interpreted

BLOCKS = {
    "BLOCK_QUERIES": "rows of a block of scores: queries of a head, or of all heads that share a stored one",
    "BLOCK_KEYS": "columns of a block of scores: keys, stored tokens, slots",
    "BLOCK_TOKENS": "tokens that are read one by one, not against each other",
    "BLOCK_CHANNELS": "channels of a head or of the residual stream",
    "BLOCK_COLUMNS": "columns of values",
    "BLOCK_PARTS": "parts that are put together",
}
"""The names of block sizes in all kernels: how many of something a program holds at a time, a power of two. The width
of a row that is held whole is in the tensor's own tuple, `arguments.Strided`."""


def config(warps: int = 4, stages: int = 2, **blocks: int) -> triton.Config:
    """One row of a table of block sizes: config(queries=64, keys=32) is BLOCK_QUERIES=64, BLOCK_KEYS=32."""
    named = {f"BLOCK_{name.upper()}": size for name, size in blocks.items()}
    unknown = [name for name in named if name not in BLOCKS]
    if unknown:
        raise TypeError(f"config: no block size is called {unknown[0]}; there are {', '.join(BLOCKS)}.")
    return triton.Config(named, num_warps=warps, num_stages=stages)


class tuned:
    """Choose a kernel's block sizes from `table`: `@tuned([config(keys=64), ...])` above `@triton.jit`.

    On a GPU the fastest row is found for every new combination of dtypes, of what tuples hold (`arguments.kind`) and of
    the arguments in `key`, and kept in Triton's cache folder. The interpreter cannot time anything: it takes the first
    row.
    """

    def __init__(self, table: Sequence[triton.Config], key: Sequence[str] = ()) -> None:
        self.table, self.key = list(table), list(key)

    def __call__(self, function: Any) -> Any:
        if interpreted():
            return _Fixed(function, self.table[0])
        return triton.autotune(self.table, self.key, cache_results=True)(function)


class _Fixed:
    """A kernel with block sizes filled in, launched as an autotuned one is: `kernel[grid](...)`."""

    def __init__(self, function: Any, chosen: triton.Config) -> None:
        self.function, self.blocks = function, chosen.kwargs

    def __getitem__(self, grid: tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.function[grid](*args, **kwargs, **self.blocks)

        return launch


def split(total: int, others: int, least: int, programs: int, *, doubling: bool = False) -> tuple[int, int]:
    """(parts, length of a part) into which programs cut `total` tokens, where `others` programs would run without.

    As many parts as it takes to keep `programs` programs busy; a part is a multiple of `least` long, but for the last.
    doubling: `least` times a power of two, so that few lengths are ever tuned for. Parts depend on shapes alone: a call
    repeated gives the same bits.
    """
    wanted = max(1, programs // max(1, others))
    pieces = max(1, ceil_div(total, wanted * least))
    length = least * (power_of_two(pieces, 1) if doubling else pieces)
    return max(1, ceil_div(total, length)), length


def ceil_div(n: int, step: int) -> int:
    """How many steps it takes to cover n."""
    return -(-n // step)


def widened(*tensors: torch.Tensor | None) -> bool:
    """Whether a kernel multiplies these as fp32: one is, they differ in dtype, or Triton has no product for theirs.

    Exact fp32 products run outside the tensor cores and unrolled, so their kernels need a table of their own: blocks as
    large as half precision likes overflow the registers. Triton's interpreter computes nonsense in bf16.
    """
    dtypes = {x.dtype for x in tensors if x is not None}
    if interpreted() and torch.bfloat16 in dtypes:
        return True
    return dtypes not in (set(), {torch.float16}, {torch.bfloat16})


def power_of_two(n: int, least: int = 16) -> int:
    """The block that holds n values: Triton wants powers of two, and its matrix products at least 16."""
    return max(least, 1 << max(0, n - 1).bit_length())
