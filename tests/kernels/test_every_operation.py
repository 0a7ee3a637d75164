"""Every operation that has a folder: all its paths against its reference, on the examples that lie in the folder."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import interp_kernels as ik
import pytest
import torch
from interp_kernels import operations, use
from interp_kernels.operations import Draw, Example

NAMES = operations.names()
LENGTHS = [1, 7, 63, 100]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = [torch.float16, torch.bfloat16]
# In the interpreter a kernel takes seconds where torch takes milliseconds: each length once, and each dtype.
TRITON = [(1, torch.bfloat16), (7, torch.float16), (63, torch.float32), (100, torch.float32)]


def mapped(change: Callable[[torch.Tensor], torch.Tensor], x: Any) -> Any:
    """x with every tensor in it changed."""
    if isinstance(x, torch.Tensor):
        return change(x)
    if isinstance(x, dict):
        return {name: mapped(change, value) for name, value in x.items()}
    if isinstance(x, tuple | list):
        parts = [mapped(change, part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x


def spread(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with others between them, NaN where there is one, and the middle axes in another order."""
    wide = x.movedim(1, -1) if x.ndim > 2 else x
    between = torch.full((*wide.shape[:-1], 2 * wide.shape[-1]), torch.nan if x.is_floating_point() else 1)
    between = between.to(x.device, x.dtype)
    between[..., ::2] = wide
    found = between[..., ::2]
    return found.movedim(-1, 1) if x.ndim > 2 else found


def outcome(example: Example, change: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> list[Any]:
    """What a call returns and leaves in its arguments, which are copies."""
    arguments, keywords = mapped(change, example.arguments), mapped(change, example.keywords)
    returned = example.operation(*arguments, **keywords)
    tensors: list[Any] = []
    mapped(lambda x: tensors.append(x) or x, (returned, arguments, keywords))  # type: ignore[func-returns-value]
    return tensors


def drawn(name: str, n: int, dtype: torch.dtype) -> list[Example]:
    return operations.examples(name, Draw(dtype, device=DEVICE), n)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_the_blocked_path(name: str, n: int, dtype: torch.dtype, same) -> None:
    for example in drawn(name, n, dtype):
        same(torch.float32 if dtype in HALF and not example.rounds else dtype, outcome, example, path="cpu")


@pytest.mark.parametrize(("n", "dtype"), TRITON, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_triton_path(name: str, n: int, dtype: torch.dtype, same) -> None:
    pytest.importorskip("triton")
    if "triton" not in operations.paths(name):
        pytest.skip("it has no triton path")
    for example in drawn(name, n, dtype):
        same(dtype, outcome, example, path="triton")


@pytest.mark.parametrize("path", ["cpu", "triton"])
@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name: str, path: str, same) -> None:
    if path not in operations.paths(name) or (path == "triton" and find_spec("triton") is None):
        pytest.skip(f"there is no {path} path")
    for example in drawn(name, 7, torch.float32):
        with use("reference"):
            wanted = outcome(example)
        with use(path):
            found = outcome(example, spread)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_give_the_same_bits(name: str) -> None:
    for example in drawn(name, 63, torch.float32):
        with use("cpu"):
            first, second = outcome(example), outcome(example)
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_documented_and_lies_where_it_is_looked_for(name: str) -> None:
    package = import_module(f"interp_kernels.{name}")
    paths = operations.paths(name)
    assert {"reference", "cpu"} <= set(paths) <= {"reference", "cpu", "triton"}
    assert ("triton" in paths) == (Path(package.__file__).with_name("triton.py").exists())
    for exported in package.__all__:
        found = getattr(ik, exported)
        assert found is getattr(package, exported)
        assert inspect.getdoc(found), f"{exported} says nothing about itself"
    for example in drawn(name, 7, torch.float32):
        assert "[B, " in inspect.getdoc(example.operation), "a docstring gives shapes"


def test_type_checkers_know_what_is_there() -> None:
    """The names that stand in `__init__.py` for their sake all exist."""
    tree = ast.parse(Path(ik.__file__).read_text(encoding="utf-8"))
    named = {a.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    for name, folder in named.items():
        if folder in NAMES:
            assert name in import_module(f"interp_kernels.{folder}").__all__
    assert sorted(ik.__all__) == sorted({*operations.exported(), "MaskFacts", "attention_pattern", "use"})


def test_kernels_take_few_arguments_and_name_their_blocks_alike() -> None:
    pytest.importorskip("triton")
    from interp_kernels.launch import BLOCKS
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    modules = [operations.module(name, "triton") for name in NAMES] + [import_module("interp_kernels.score_block")]
    kernels = {
        value for module in modules if module for value in vars(module).values()
        for value in [getattr(value, "function", getattr(value, "fn", value)), value]
        if isinstance(value, JITFunction | InterpretedFunction)
    }  # fmt: skip
    assert len(kernels) > 20
    for kernel in kernels:
        arguments = inspect.signature(kernel.fn).parameters
        assert len(arguments) <= 20, f"{kernel.__name__} takes {len(arguments)} arguments: group them in tuples"
        unknown = {name for name in arguments if "BLOCK" in name} - set(BLOCKS)
        assert not unknown, f"{kernel.__name__}: no block size is called {unknown}; there are {list(BLOCKS)}"


def test_tuning_tells_apart_what_tuples_hold() -> None:
    """Triton's tuner looks at `dtype`: of tensors that lie in tuples and of facts that are there or not."""
    pytest.importorskip("triton")
    from interp_kernels.arguments import mask_tuple, strided
    from interp_kernels.facts import resolve

    q = torch.zeros(1, 2, 5, 16)
    told = [
        mask_tuple(resolve("a test", q, q, **facts)).dtype
        for facts in ({}, {"causal": False}, {"window": 3}, {"key_mask": torch.ones(1, 5).bool()}, {"offset": 7})
    ]
    assert len({*told}) == 4
    assert told[0] == told[4], "numbers alone are no other kernel"
    assert len({strided(x).dtype for x in (q, q.half(), q[..., :9], q[:, :1], q[:, :, :2])}) == 3
