"""Which path of an operation runs: one rule for all operations, and `use` to override it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from os import environ
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

PATHS = ("reference", "cpu", "triton")
T = TypeVar("T")
Paths: TypeAlias = Mapping[str, Callable[..., T]]
"""An operation's functions by path; all return a T."""

_override: str | None = None


class use:
    """Override the path that every operation takes, as a plain call or for the length of a `with` block.

    `use("reference")` holds from now on, in every thread; what a `with` block overrides is restored on leaving, also
    after an exception.

    Args:
        path: "reference" (plain torch, keeps the N x S matrix), "cpu" (blocked torch, on any device), "triton" (on a
            GPU, or anywhere under Triton's interpreter) or "auto" (the rule of `choose`).

    Raises:
        ValueError: on any other name; the choice stays as it was.

    Examples:
        >>> with interp_kernels.use("reference"):
        ...     found = interp_kernels.attention_apply(q, k, v)
        >>> found.z.shape
        torch.Size([1, 4, 6, 8])
    """

    def __init__(self, path: str) -> None:
        global _override
        if path not in (*PATHS, "auto"):
            near = get_close_matches(path, (*PATHS, "auto"), n=1)
            hint = f' (did you mean "{near[0]}"?)' if near else ""
            raise ValueError(
                f'use: no path is called "{path}"{hint}; there are "reference", "cpu", "triton" and "auto".'
            )
        self._previous = _override
        _override = None if path == "auto" else path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _override
        _override = self._previous


def choose(paths: Paths[T], x: Tensor) -> Callable[..., T]:
    """The function to run on x: the overridden path; else Triton's for what lies on a GPU, and the blocked one.

    Kernels sum in fp32, so fp64 stays with the blocked path, and so does everything where triton is not installed.
    Raises RuntimeError or TypeError where an overridden path cannot run on x.
    """
    return paths[chosen(paths, x)]


def chosen(paths: Paths[Any], x: Tensor) -> str:
    """The name of the path that `choose` takes."""
    if _override == "triton":
        _refuse_unfit(paths, x)
    if _override is not None:
        return _override
    fits = x.is_cuda and x.dtype != torch.float64 and "triton" in paths and installed()
    return "triton" if fits else "cpu"


def _refuse_unfit(paths: Paths[Any], x: Tensor) -> None:
    if "triton" not in paths:
        raise RuntimeError('this operation has no "triton" path; use "auto", "cpu" or "reference".')
    if not installed():
        raise RuntimeError('the "triton" path needs triton: pip install "interp[gpu]".')
    if x.dtype == torch.float64:
        raise TypeError('the "triton" path sums in fp32; fp64 runs on "cpu" or "reference".')
    if not x.is_cuda and not interpreted():
        raise RuntimeError(
            'the "triton" path runs on CUDA tensors, or on any under TRITON_INTERPRET=1 set before triton is imported.'
        )


@cache
def installed() -> bool:
    """Whether triton can be imported; asked without importing it."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels, in numpy, on whatever device."""
    return environ.get("TRITON_INTERPRET") == "1"


def kernel(package: str, function: str) -> Callable[..., Any]:
    """`function` of a package's `triton.py`, which is imported when it is first called: triton is optional."""

    def call(*args: Any) -> Any:
        return getattr(import_module(f"{package}.triton"), function)(*args)

    return call
