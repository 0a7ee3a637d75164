"""Compile the kernels for a GPU that is not there: `python gpu_code.py DTYPE [OPERATION ...]`, a line for every one.

Triton brings its own assembler, so machine code for an H100 can be made anywhere. A stand-in for the driver says which
GPU is meant, and launching a kernel compiles it, with the first block sizes of its table, instead of running it. What
comes out of the operations is therefore rubbish. Run without TRITON_INTERPRET.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import interp_kernels as ik
import torch
import triton
from interp_kernels import dispatch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

H100 = GPUTarget("cuda", 90, 32)
SHARED = 232_448
"""Bytes of shared memory that a block may have there."""


class Stand:
    """What Triton asks a driver while it compiles."""

    utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": SHARED})

    def get_current_target(self) -> GPUTarget:
        return H100

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda


class Compiled:
    """A kernel whose launch compiles it."""

    def __init__(self, function: JITFunction, row: triton.Config) -> None:
        self.function, self.row = function, row

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            made = self.function.warmup(
                *args, grid=(1,), **kwargs, **self.row.kwargs,
                num_warps=self.row.num_warps, num_stages=self.row.num_stages,
            )  # fmt: skip
            used = made.metadata.shared
            if used > SHARED:
                sys.exit(f"{self.function.__name__} wants {used} bytes of shared memory, there are {SHARED}")
            print(f"{self.function.__name__}: {len(made.asm['cubin'])} bytes of machine code, {used} of shared memory")

        return launch


def stand_in() -> None:
    driver.set_active(Stand())
    triton.autotune = lambda table, key, **options: lambda function: Compiled(function, table[0])
    JITFunction.__getitem__ = lambda self, grid: Compiled(self, triton.Config({}))[grid]  # type: ignore[assignment]
    dispatch._refuse_unfit = lambda paths, x: None  # it knows that there is no GPU


def operations(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """A call of every operation, with most mask facts at once."""
    heads, stored, queries, keys, size = 6, 2, 70, 90, 80
    q, k, v = (torch.randn(2, h, n, size).to(dtype) for h, n in ((heads, queries), (stored, keys), (stored, keys)))
    y, lse = torch.randn(2, heads, queries, 48).to(dtype), torch.randn(2, heads, queries)
    facts = {
        "key_mask": torch.rand(2, keys) > 0.2, "query_mask": torch.rand(2, queries) > 0.2, "window": 50,
        "softcap": 30.0, "sinks": torch.randn(heads), "bias": torch.randn(2, 1, 1, keys),
    }  # fmt: skip
    half = torch.arange(size // 2).expand(2, stored, -1)
    old, new = ik.KeySegment(k[..., : size // 2], v, half.short()), ik.KeySegment(k[:, :, -9:], v[:, :, -9:])
    at = torch.arange(keys).repeat(2, stored, 1)
    every = ("lse", "entropy", "square", "column_mass")
    groups = torch.arange(keys).expand(2, -1) % 3
    target = torch.zeros(2, stored, 40, dtype=torch.long)
    weight = torch.rand(2, stored, 40)
    rule = torch.tensor([0.5, 1.0, 0.0]).view(1, 1, 1, 3)
    return {
        "attention_apply": lambda: ik.attention_apply(q, k, v, statistics=every, **facts),
        "attention_transpose_apply": lambda: ik.attention_transpose_apply(q, k, lse, y, **facts),
        "attention_gram_apply": lambda: ik.attention_gram_apply(q, k, lse, torch.randn(2, heads, keys, 8), **facts),
        "channel_energy": lambda: ik.channel_energy(k, facts["key_mask"]),
        "channel_gram": lambda: ik.channel_gram(q, facts["query_mask"], heads=stored),
        "think_pack": lambda: ik.think_pack(k, half),
        "packed_decode": lambda: ik.packed_decode(q[:, :, :3], [old, new], softcap=30.0, sinks=facts["sinks"]),
        "nearest_merge": lambda: (
            ik.nearest_key(k[:, :, 50:], k[:, :, :50]),
            ik.merge_tokens(k[:, :, :50], k[:, :, 50:], target, weight),
        ),
        "decode_step": lambda: ik.decode_step(q[:, :, :1], k, v, torch.rand(2, stored, keys), at, keep_oldest=4),
        "group_reweighted_attention, one pass": lambda: ik.group_reweighted_attention(
            q, k, v, groups, rule, form="one_pass", **facts
        ),
        "group_reweighted_attention, two passes": lambda: ik.group_reweighted_attention(
            q, k, v, groups, rule, form="two_pass", **facts
        ),
        "residual_census": lambda: ik.residual_census(q.flatten(1, 2)[:, :, :64], channels=[3, 5]),
    }


def main(dtype: str, *names: str) -> None:
    stand_in()
    every = operations(getattr(torch, dtype))
    with ik.use("triton"):
        for name in names or every:
            print(f"{name}:", flush=True)
            every[name]()


if __name__ == "__main__":
    main(*sys.argv[1:])
