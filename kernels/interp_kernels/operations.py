"""A new operation is one new folder, and nothing else is touched: finding the folders, and what each may hold.

In `interp_kernels/NAME/`, for an operation called NAME:

- `__init__.py`: the function NAME, which documents shapes, dtypes, units, errors and cost, checks its arguments
  (`checks`, `facts.resolve`) and calls `choose(PATHS, x)`; PATHS, whose keys are "reference", "cpu" and, if there is
  one, "triton" (`dispatch.kernel`, so that triton is imported when it is first used); and `__all__`, which names what
  `interp_kernels` exports.
- `reference.py`: the same in plain torch, as readable as can be: the truth that the other paths are held against.
- `cpu.py`: in blocks, on any device. `triton.py`: for a GPU. Its kernels take tensors as `arguments.Strided` and mask
  facts as `arguments.MaskTuple`; block sizes are called as in `launch.BLOCKS`.
- `examples.py`: `examples(draw, n)`, some calls at a length of n, see `Example` and `Draw`. The tests run them on all
  paths, in all dtypes, at odd lengths, with strides, and compile them for a GPU.
- `bench.py`, if its speed matters: `timed(make)`, what `interp bench kernels` times, see `timing.Timed`.

Folders whose name starts with `_` are not looked at. What only an operation's author can know, errors above all, goes
into a test of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import Paths

PACKAGE = __name__.rpartition(".")[0]


def names() -> list[str]:
    """Every operation's name, sorted."""
    path = import_module(PACKAGE).__path__
    return sorted(found.name for found in iter_modules(path) if found.ispkg and not found.name.startswith("_"))


def module(name: str, part: str | None = None) -> ModuleType | None:
    """An operation's package, or the module `part` in it; None where it has no such part."""
    full = ".".join(filter(None, (PACKAGE, name, part)))
    return import_module(full) if part is None or find_spec(full) else None


def exported() -> dict[str, Any]:
    """What all operations export, by name."""
    packages = [import_module(f"{PACKAGE}.{name}") for name in names()]
    return {name: getattr(package, name) for package in packages for name in package.__all__}


def paths(name: str) -> Paths[Any]:
    """The paths of the operation itself."""
    found: Paths[Any] = import_module(f"{PACKAGE}.{name}").PATHS
    return found


class Example(NamedTuple):
    """A call of an operation: operation(*arguments, **keywords). What it writes into its arguments is compared too."""

    operation: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    rounds: bool = False
    """Whether the CPU path, too, rounds to the inputs' half precision on the way; else it sums in fp32 throughout."""


def examples(name: str, draw: Draw, n: int) -> list[Example]:
    """An operation's own examples at a length of n.

    Raises ImportError, in one sentence, where it has none.
    """
    found = module(name, "examples")
    if found is None:
        raise ImportError(f"{name} has no examples.py; give it one with examples(draw, n), see `operations`.")
    made: Iterable[Example] = found.examples(draw, n)
    return list(made)


class Draw:
    """Random tensors for examples: two texts each, always the same for one dtype.

    size: channels of a head.
    """

    def __init__(self, dtype: torch.dtype, size: int = 16, device: str | torch.device = "cpu") -> None:
        self.dtype, self.size, self.device = dtype, size, torch.device(device)
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        """Normally distributed numbers [2, *shape] of the dtype."""
        return torch.randn(2, *shape, generator=self.generator).to(self.device, self.dtype)

    def even(self, *shape: int) -> Tensor:
        """Numbers [2, *shape] between 0 and 1 in fp32 (fp64 for fp64)."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return torch.rand(2, *shape, generator=self.generator).to(self.device, wide)

    def integers(self, stop: int, *shape: int) -> Tensor:
        """Integers [2, *shape] from 0 to stop - 1."""
        return torch.randint(stop, (2, *shape), generator=self.generator).to(self.device)

    def some(self, count: int, stop: int, *shape: int) -> Tensor:
        """[2, *shape, count]: different integers from 0 to stop - 1, in order."""
        order = torch.rand(2, *shape, stop, generator=self.generator).argsort(-1)
        return order[..., :count].sort(-1).values.to(self.device)

    def padding(self, n: int) -> Tensor:
        """Bool [2, n], False for padding: none in the first text, half of the second, on its left."""
        return torch.arange(n, device=self.device) >= torch.tensor([[0], [n // 2]], device=self.device)

    def facts(self, heads: int, queries: int, keys: int) -> dict[str, Any]:
        """Keywords with most mask facts at once."""
        return {
            "key_mask": self.padding(keys), "query_mask": self.padding(queries).flip(1), "window": max(1, keys // 2),
            "softcap": 4.0, "sinks": self.even(heads)[0], "bias": self(1, 1, keys).to(self.even(1).dtype),
        }  # fmt: skip
