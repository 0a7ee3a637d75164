"""Shape and dtype checks that fail in one sentence: what was asked, what was found, what would work."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LETTERS = "B batch, H query heads, Hk key/value heads, N queries, S keys, D head size, R columns"


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype in which everything is summed and returned: fp64 for fp64 inputs, else fp32. Of attention q decides."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def expect_float(operation: str, **tensors: Tensor) -> None:
    """Raise TypeError unless every tensor holds real floating-point numbers."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{operation}: {name} must be floating point, found {tensor.dtype}.")


def expect_bool(operation: str, **tensors: Tensor) -> None:
    """Raise TypeError unless every mask is boolean."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.bool:
            raise TypeError(
                f"{operation}: {name} must be bool with True for what is kept, found {tensor.dtype}; "
                f"an additive mask becomes one with `{name} == 0`."
            )


def expect_shape(operation: str, name: str, tensor: Tensor, pattern: str, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless `tensor` has the axes of `pattern`, a string such as "B H N D".

    sizes: what each letter may be; a letter that is not in it may be anything.
    """
    shape = tensor.shape
    letters = pattern.split()
    if len(shape) == len(letters):
        for letter, size in zip(letters, shape, strict=True):
            if letter in sizes and size not in sizes[letter]:
                break
        else:
            return
    wanted = ", ".join(
        f"{letter}={' or '.join(map(str, dict.fromkeys(sizes[letter])))}" if letter in sizes else letter
        for letter in letters
    )
    raise ValueError(f"{operation}: {name} should be [{wanted}], found {list(shape)} ({LETTERS}).")
