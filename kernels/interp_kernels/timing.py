"""How fast each operation is here, beside torch's own attention and beside what memory and arithmetic allow.

`measure` runs all operations in turns, so that what else the machine does hits all alike, and relates each to SDPA on
tensors of the same shape. Bytes and FLOPs are what an operation must move and compute at least, by the formulas of the
docstrings; the ceilings are a copy and a matrix product, measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from . import (
    attention_apply,
    attention_gram_apply,
    attention_transpose_apply,
    channel_energy,
    channel_gram,
    decode_step,
    group_reweighted_attention,
    nearest_key,
    packed_decode,
    residual_census,
    think_pack,
)
from .dispatch import chosen
from .packed_decode import KeySegment
from .packed_decode.channels import cut


class Shape(NamedTuple):
    """Sizes of one attention layer; the default is the demo model's."""

    heads: int = 9
    kv_heads: int = 3
    d_head: int = 64


COLUMNS = 48
GROUPS = 4
RATIOS = (0.4, 0.5, 0.7)
RECENT = 32
COLD = 128 << 20
"""Bytes over which a decoding step walks before it comes back to the first: no layer finds its keys in a cache."""


class Timed(NamedTuple):
    """One operation on tensors of one size."""

    name: str
    run: Callable[[int], Any]
    """Called with 0 ... layers - 1, each with tensors of its own."""
    beside: str
    """Name of the torch form by whose time its own is divided."""
    flops: float
    nbytes: float
    operation: str | None = None
    """The operation of this package whose path is named; None for torch's own forms."""
    layers: int = 1


class Maker:
    """Random tensors of one dtype on one device, and the sizes that all cases share."""

    def __init__(self, tokens: int, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.n, (self.heads, self.kv_heads, self.d) = tokens, shape
        self.device, self.dtype, self.size = device, dtype, torch.empty(0, dtype=dtype).element_size()
        self.pairs = tokens * (tokens + 1) / 2

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(1, *shape, device=self.device).to(self.dtype)


def prefill_cases(make: Maker) -> list[Timed]:
    """Operations over all pairs of a causal text."""
    n, heads, kv_heads, d = make.n, make.heads, make.kv_heads, make.d
    q, k, v, y = make(heads, n, d), make(kv_heads, n, d), make(kv_heads, n, d), make(heads, n, COLUMNS)
    lse = attention_apply(q, k).lse
    product, keys, rows = 2 * heads * make.pairs, make.size * kv_heads * n * d, make.size * heads * n * d
    out, given = 4 * heads * n, make.size * heads * n  # bytes of a column that is returned in fp32, or handed in
    torch_form = "SDPA, prefill"

    def case(name: str, run: Callable[[], Any], columns: float, nbytes: float, operation: str | None) -> Timed:
        return Timed(name, lambda layer: run(), torch_form, product * columns, nbytes, operation)

    return [
        case(torch_form, lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True), 2 * d, 2 * (keys + rows), None),
        case("attention", lambda: attention_apply(q, k, v), 2 * d, 2 * keys + rows + d * out, "attention_apply"),
        case("lse", lambda: attention_apply(q, k), d, keys + rows, "attention_apply"),
        case("column mass", lambda: attention_transpose_apply(q, k, lse), d, keys + rows, "attention_transpose_apply"),
        case(
            f"transpose, {COLUMNS} columns", lambda: attention_transpose_apply(q, k, lse, y),
            d + COLUMNS, keys + rows + COLUMNS * (given + out), "attention_transpose_apply",
        ),
        case(
            f"gram, {COLUMNS} columns", lambda: attention_gram_apply(q, k, lse, y),
            d + 2 * COLUMNS, keys + rows + COLUMNS * (given + 2 * out), "attention_gram_apply",
        ),
        Timed("group reweighting, one pass", partial(_reweighted, q, k, v, "one_pass"), torch_form, 2 * product * d,
             2 * keys + rows + d * out, "group_reweighted_attention"),
        Timed("group reweighting, two passes", partial(_reweighted, q, k, v, "two_pass"), torch_form, 3 * product * d,
             3 * keys + 2 * rows + d * out, "group_reweighted_attention"),
    ]  # fmt: skip


def _reweighted(q: Tensor, k: Tensor, v: Tensor, form: str, layer: int) -> Any:
    """Four groups of keys of which one gives half of its mass to the others, decided from the masses."""
    groups = torch.arange(k.shape[2], device=k.device)[None] % GROUPS
    return group_reweighted_attention(q, k, v, groups, _give_half, form=form)


def _give_half(masses: Tensor) -> Tensor:
    return torch.cat([torch.full_like(masses[..., :1], 0.5), torch.ones_like(masses[..., 1:])], -1)


def stream_cases(make: Maker) -> list[Timed]:
    """Operations that read their input once, beside a copy of the keys."""
    n, kv_heads, d = make.n, make.kv_heads, make.d
    k, x = make(kv_heads, n, d), make(n, make.heads * d)
    channels = torch.arange(d // 2, device=k.device).expand(1, kv_heads, -1)
    keys, copied = make.size * k.numel(), "copy of the keys"
    pairs = kv_heads * (n // 5) * (n - n // 5)
    return [
        Timed(copied, lambda layer: k.clone(), copied, 0, 2 * keys),
        Timed("channel energy", lambda layer: channel_energy(k), copied, 2 * k.numel(), keys, "channel_energy"),
        Timed("channel Gram matrix", lambda layer: channel_gram(k), copied, 2 * d * k.numel(), keys, "channel_gram"),
        Timed("packing half of them", lambda layer: think_pack(k, channels), copied, 0, 1.5 * keys, "think_pack"),
        Timed("nearest of a fifth for the rest", lambda layer: nearest_key(k[:, :, n // 5 :], k[:, :, : n // 5]),
             copied, 2 * d * pairs, keys, "nearest_merge"),
        Timed("residual census", lambda layer: residual_census(x, top=1), copied, 2 * x.numel(),
             make.size * x.numel(), "residual_census"),
    ]  # fmt: skip


def decode_cases(make: Maker) -> list[Timed]:
    """One new query over n stored tokens."""
    n, heads, kv_heads, d = make.n, make.heads, make.kv_heads, make.d
    half = make.size * kv_heads * n * d  # bytes of the keys, and of the values
    layers = max(1, COLD // int(2 * half))
    q = make(heads, 1, d)
    rows = q.view(1, kv_heads, -1, d)
    stored = [(make(kv_heads, n, d), make(kv_heads, n, d)) for _ in range(layers)]
    dense = [[KeySegment(k, v)] for k, v in stored]
    work = 2 * heads * n * d
    forms: dict[str, Callable[[int], Any]] = {
        "SDPA, decode": lambda i: sdpa(q, *stored[i], enable_gqa=True),
        "SDPA, decode, group as rows": lambda i: sdpa(rows, *stored[i]),
    }
    torch_form = "SDPA, decode"
    found = [Timed(name, run, torch_form, 2 * work, 2 * half, None, layers) for name, run in forms.items()]
    found.append(
        Timed("decode, dense", partial(_decode, q, dense), torch_form, 2 * work, 2 * half,
             "packed_decode", layers)
    )  # fmt: skip
    for ratio in RATIOS:
        left = 1 - int(d * ratio) / d
        packed = [_packed(k, v, d - int(d * ratio)) for k, v in stored]
        found.append(
            Timed(f"decode, {ratio:.0%} of key channels pruned", partial(_decode, q, packed),
                 torch_form, work * (1 + left), half * (1 + left), "packed_decode", layers)
        )  # fmt: skip
    found.append(_evicting(make, layers))
    return found


def _evicting(make: Maker, layers: int) -> Timed:
    """A step that also accounts for attention and drops one token; the cache is as large after it as before."""
    n, d = make.n, make.d
    q, stored = make(make.heads, 1, d), [(make(make.kv_heads, n, d), make(make.kv_heads, n, d)) for _ in range(layers)]
    mass = [torch.rand(1, make.kv_heads, n, device=make.device) for _ in range(layers)]
    at = [torch.arange(n, device=make.device).repeat(1, make.kv_heads, 1) for _ in range(layers)]
    half = make.size * make.kv_heads * n * d

    def step(layer: int) -> Any:
        return decode_step(q, *stored[layer], mass[layer], at[layer], keep_oldest=4, keep_newest=n // 4)

    return Timed(
        "decode, and evict a token", step, "SDPA, decode", 4 * make.heads * n * d, 2 * half, "decode_step", layers
    )


def _decode(q: Tensor, layers: list[list[KeySegment]], layer: int) -> Any:
    return packed_decode(q, layers[layer], mass=False)


def _packed(k: Tensor, v: Tensor, kept: int) -> list[KeySegment]:
    """Keys with `kept` random channels, but for the newest ones."""
    channels = torch.rand(*k.shape[:2], k.shape[-1], device=k.device).argsort(-1)[..., :kept].sort(-1).values
    old, new = slice(0, k.shape[2] - RECENT), slice(k.shape[2] - RECENT, None)
    keys = cut(k[:, :, old], channels)
    values = v[:, :, old].contiguous()
    if not k.is_cuda:  # as the cache lays it out
        keys, values = keys.mT.contiguous().mT, values.mT.contiguous().mT
    return [
        KeySegment(keys, values, channels.to(torch.int16)), KeySegment(k[:, :, new].clone(), v[:, :, new].clone())
    ]  # fmt: skip


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
        for cases in (prefill_cases, stream_cases, decode_cases):
            for case, seconds, ratio, extra in _in_turns(cases(make), device, rounds):
                rows.append({
                    "tokens": tokens, "what": case.name, "path": _path(case, device, dtype),
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


def _path(case: Timed, device: torch.device, dtype: torch.dtype) -> str:
    if case.operation is None:
        return "torch"
    paths = import_module(f".{case.operation}", __package__).PATHS
    return chosen(paths, torch.empty(0, device=device, dtype=dtype))
