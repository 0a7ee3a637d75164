"""How fast each operation is here, beside torch's own attention and beside what memory and arithmetic allow.

`measure` runs operations in turns, so that what else the machine does hits all alike, and relates each to a form of
torch's on tensors of the same shape. What is timed of an operation stands in its folder (`bench.py`). Bytes and FLOPs
are what an operation must move and compute at least, by the formulas of the docstrings; the ceilings are a copy and a
matrix product, measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from . import operations
from .dispatch import chosen


class Shape(NamedTuple):
    """Sizes of one attention layer; the default is the demo model's."""

    heads: int = 9
    kv_heads: int = 3
    d_head: int = 64


COLD = 128 << 20
"""Bytes over which a decoding step walks before it comes back to the first: no layer finds its keys in a cache."""
PREFILL, COPY, DECODE = "SDPA, prefill", "copy of the keys", "SDPA, decode"
"""The torch forms that operations stand beside: over all pairs of a causal text; reading once; one new query."""


class Timed(NamedTuple):
    """One operation on tensors of one size."""

    name: str
    run: Callable[[int], Any]
    """Called with 0 ... layers - 1, each with tensors of its own."""
    beside: str
    """The torch form by whose time its own is divided: PREFILL, COPY or DECODE."""
    flops: float
    nbytes: float
    layers: int = 1


class Maker:
    """Random tensors of one text, of one dtype on one device, and the sizes that cases share."""

    def __init__(self, tokens: int, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.n, (self.heads, self.kv_heads, self.d) = tokens, shape
        self.device, self.dtype, self.size = device, dtype, torch.empty(0, dtype=dtype).element_size()
        self.products = self.heads * tokens * (tokens + 1)
        """FLOPs of one column of a product with A, under a causal mask."""
        self.query_bytes, self.key_bytes = (self.size * h * tokens * self.d for h in (self.heads, self.kv_heads))
        """Of all queries; of all keys, and of the values."""
        self.layers = max(1, COLD // (2 * self.key_bytes))
        """Caches that a decoding step walks over."""

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(1, *shape, device=self.device).to(self.dtype)

    def column_bytes(self, size: int) -> int:
        """Of one number of `size` bytes for every query head and token."""
        return size * self.heads * self.n

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of a text."""
        return self(self.heads, self.n, self.d), *self.stored()

    def stored(self) -> tuple[Tensor, Tensor]:
        """Keys and values of a cache."""
        return self(self.kv_heads, self.n, self.d), self(self.kv_heads, self.n, self.d)


def torch_forms(make: Maker) -> Iterator[Timed]:
    """What operations stand beside, and SDPA with a group's heads as rows, which reads each key once."""
    q, k, v = make.pairs()
    work = 2 * make.products * make.d
    moved = 2 * (make.key_bytes + make.query_bytes)
    yield Timed(PREFILL, lambda layer: sdpa(q, k, v, is_causal=True, enable_gqa=True), PREFILL, work, moved)
    yield Timed(COPY, lambda layer: k.clone(), COPY, 0, 2 * make.key_bytes)
    one, caches = make(make.heads, 1, make.d), [make.stored() for _ in range(make.layers)]
    rows = one.view(1, make.kv_heads, -1, make.d)
    forms: dict[str, Callable[[int], Any]] = {
        DECODE: lambda layer: sdpa(one, *caches[layer], enable_gqa=True),
        "SDPA, decode, group as rows": lambda layer: sdpa(rows, *caches[layer]),
    }
    for name, run in forms.items():
        yield Timed(name, run, DECODE, 4 * make.heads * make.n * make.d, 2 * make.key_bytes, make.layers)


def cases(make: Maker) -> dict[str, list[tuple[str | None, Timed]]]:
    """(operation, case) by the torch form that cases stand beside; torch's own forms first, without an operation."""
    found: dict[str, list[tuple[str | None, Timed]]] = {PREFILL: [], COPY: [], DECODE: []}
    for form in torch_forms(make):
        found[form.beside].append((None, form))
    for name in operations.names():
        bench = operations.module(name, "bench")
        for case in bench.timed(make) if bench else ():
            found[case.beside].append((name, case))
    return found


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(bytes a second of a copy, FLOPs a second of a matrix product), the best of a few."""
    big = device.type == "cuda"
    x = torch.empty((1 << 30) if big else (64 << 20), dtype=torch.uint8, device=device)
    side = 8192 if big else 1536
    a = torch.randn(side, side, device=device).to(dtype)
    into = torch.empty_like(x)
    copying = min(_seconds(lambda: into.copy_(x), device) for _ in range(5))
    multiplying = min(_seconds(lambda: a @ a, device) for _ in range(5))
    return 2 * x.numel() / copying, 2 * side**3 / multiplying


@torch.no_grad()
def measure(
    lengths: tuple[int, ...] = (1024, 4096),
    *,
    shape: Shape | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    rounds: int = 7,
) -> list[dict[str, Any]]:
    """A row for every operation and length: its path, milliseconds, ratio to torch's form, and shares of the ceilings.

    shape: heads and head size; None means the demo model's. device: None means a GPU where there is one.
    Times are medians over rounds; ratios are medians of pairs taken in the same round. "extra MB" is what the
    operation takes beyond its inputs at its peak, on a GPU; on a CPU torch does not count it.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bandwidth, arithmetic = ceilings(device, dtype)
    rows = []
    for tokens in lengths:
        make = Maker(tokens, shape or Shape(), device, dtype)
        for group in cases(make).values():
            named = {case.name: operation for operation, case in group}
            for case, seconds, ratio, extra in _in_turns([case for _, case in group], device, rounds):
                rows.append({
                    "tokens": tokens, "what": case.name, "path": _path(named[case.name], device, dtype),
                    "ms": round(1e3 * seconds, 3), "x torch": round(ratio, 3),
                    "GB/s": round(case.nbytes / seconds / 1e9, 1),
                    "of copy": round(case.nbytes / seconds / bandwidth, 3),
                    "GFLOP/s": round(case.flops / seconds / 1e9, 1),
                    "of product": round(case.flops / seconds / arithmetic, 3), "extra MB": extra,
                })  # fmt: skip
    return rows


def _in_turns(
    cases: list[Timed], device: torch.device, rounds: int
) -> Iterator[tuple[Timed, float, float, float | None]]:
    """(case, seconds, ratio to the form beside it, extra MB) of each; the first round warms up and is not counted."""
    taken: dict[str, list[float]] = {case.name: [] for case in cases}
    extra: dict[str, float | None] = {}
    for round_ in range(rounds + 1):
        for case in cases:
            before = _memory(device)
            seconds = _seconds(partial(_walk, case), device) / case.layers
            extra[case.name] = None if before is None else round((_memory(device, peak=True) - before) / 1e6, 1)
            if round_:
                taken[case.name].append(seconds)
    for case in cases:
        pairs = zip(taken[case.name], taken[case.beside], strict=True)
        yield case, statistics.median(taken[case.name]), statistics.median(t / s for t, s in pairs), extra[case.name]


def _walk(case: Timed) -> None:
    for layer in range(case.layers):
        case.run(layer)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device, peak: bool = False) -> Any:
    """Bytes that torch holds on a GPU, None elsewhere; asking for what it holds now begins a new peak."""
    if device.type != "cuda":
        return None
    if peak:
        return torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _path(operation: str | None, device: torch.device, dtype: torch.dtype) -> str:
    if operation is None:
        return "torch"
    return chosen(operations.paths(operation), torch.empty(0, device=device, dtype=dtype))
