"""Random inputs for the attention operations, with the mask facts that real models and batches bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interp_kernels import use

NAN = float("nan")
FACT_NAMES = [
    "causal",
    "bidirectional",
    "window",
    "window of one",
    "softcap",
    "sinks",
    "offset",
    "scale",
    "left padding",
    "right padding",
    "dense",
    "dense broadcast",
    "nothing visible",
    "bias",
    "bias by key",
    "all at once",
]


@pytest.fixture(params=FACT_NAMES)
def facts_name(request: pytest.FixtureRequest) -> str:
    """Each case of `facts_named` in turn."""
    return request.param


TOLERANCE = {
    torch.float64: {"atol": 1e-10, "rtol": 1e-10},
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.float16: {"atol": 2e-3, "rtol": 1e-2},
    torch.bfloat16: {"atol": 1e-2, "rtol": 2e-2},
}


@pytest.fixture
def same() -> Iterator[Callable[..., None]]:
    """same(dtype, operation, *args, **kwargs): Triton's path gives what the reference does, for inputs in that dtype.

    While the test runs torch fills all new memory with NaN, so that what a kernel does not write is seen.
    """

    def check(dtype: torch.dtype, operation: Callable, *args: Any, path: str = "triton", **kwargs: Any) -> None:
        with use("reference"):
            expected = operation(*args, **kwargs)
        with use(path):
            found = operation(*args, **kwargs)
        torch.testing.assert_close(found, expected, equal_nan=True, **TOLERANCE[dtype])

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all(), "torch no longer fills new memory"
    yield check
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def facts_named(name: str, heads: int, queries: int, keys: int, generator: torch.Generator) -> dict:
    """The keywords of one case for a batch of two; sizes are chosen so that the smallest inputs stay legal."""

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    short = torch.tensor([keys, (keys + 1) // 2])  # real keys of each text
    left = torch.arange(keys) >= (keys - short)[:, None]
    right = torch.arange(keys) < short[:, None]
    rows_right = torch.arange(queries) < torch.tensor([queries, (queries + 1) // 2])[:, None]
    cases = {
        "causal": {},
        "bidirectional": {"causal": False},
        "window": {"window": max(1, keys // 3)},
        "window of one": {"window": 1},
        "softcap": {"softcap": 1.5},
        "sinks": {"sinks": 3 * rand(heads) - 1},
        "offset": {"offset": keys - queries - 2},  # the first rows see nothing where N >= S
        "scale": {"scale": 0.1},
        "left padding": {"key_mask": left},
        "right padding": {"key_mask": right, "query_mask": rows_right},
        "dense": {"mask": rand(2, heads, queries, keys) > 0.5},
        "dense broadcast": {"mask": rand(1, 1, queries, keys) > 0.5, "key_mask": right, "window": 1},
        "nothing visible": {"key_mask": torch.zeros(2, keys, dtype=torch.bool), "sinks": rand(heads)},
        "bias": {"bias": (3 * rand(2, heads, queries, keys) - 1).masked_fill(rand(2, 1, 1, keys) > 0.8, -torch.inf)},
        "bias by key": {"bias": 3 * rand(1, 1, 1, keys) - 1, "softcap": 1.5},
        "all at once": {
            "bias": 3 * rand(1, heads, 1, keys) - 1,
            "window": max(1, keys // 2),
            "softcap": 4.0,
            "sinks": rand(heads),
            "key_mask": left,
            "query_mask": rows_right,
            "scale": 0.3,
        },
    }
    return cases[name]


@pytest.fixture(scope="session")
def draw() -> Callable[..., SimpleNamespace]:
    """draw(heads, kv_heads, queries, keys, dtype, facts name, seed) -> q, k, v, y, x and facts; padding holds NaN."""

    def build(
        heads: int,
        kv_heads: int,
        queries: int,
        keys: int,
        dtype: torch.dtype = torch.float32,
        name: str = "causal",
        seed: int = 0,
        size: int = 16,
        columns: int = 5,
    ) -> SimpleNamespace:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)

        facts = facts_named(name, heads, queries, keys, generator)
        drawn = SimpleNamespace(
            q=randn(heads, queries, size),
            k=randn(kv_heads, keys, size),
            v=randn(kv_heads, keys, columns),
            y=randn(heads, queries, columns),
            x=randn(heads, keys, columns),
            facts=facts,
        )
        for mask, tensors in (("key_mask", (drawn.k, drawn.v, drawn.x)), ("query_mask", (drawn.q, drawn.y))):
            if mask in facts:
                for tensor in tensors:
                    tensor.masked_fill_(~facts[mask][:, None, :, None], NAN)
        return drawn

    return build


WAYS = {"reference": ("reference", "auto"), "one pass": ("cpu", "one_pass"), "two passes": ("cpu", "two_pass")}


@pytest.fixture(params=WAYS)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each way to compute group_reweighted_attention; on the reference's path the form does not matter."""
    path, form = WAYS[request.param]
    with use(path):
        yield form
