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

import torch
import triton
from interp_kernels import dispatch, operations, use
from interp_kernels.operations import Draw
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


def main(dtype: str, *names: str) -> None:
    stand_in()
    draw = Draw(getattr(torch, dtype), size=80)
    with use("triton"):
        for name in names or operations.names():
            if "triton" in operations.paths(name):
                print(f"{name}:", flush=True)
                for example in operations.examples(name, draw, 70):
                    example.operation(*example.arguments, **example.keywords)


if __name__ == "__main__":
    main(*sys.argv[1:])
