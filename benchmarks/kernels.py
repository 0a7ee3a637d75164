"""The attention operations on this CPU against torch's own SDPA forward on the same tensors.

Ratios are medians over interleaved rounds (operation / SDPA in the same round). Nothing is reported before the CPU path
agreed with the reference on an odd length. Shapes are the demo model's: 9 query heads, 3 key/value heads, head dim 64.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import interp_kernels as ik
import torch

from benchmarks.table import publish

HEADS, KV_HEADS, D_HEAD, WIDTH = 9, 3, 64, 48
LENGTHS = (1024, 2048, 4096)
ROUNDS = 9
Tensor = torch.Tensor


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(n)
    q = torch.randn(1, HEADS, n, D_HEAD, generator=make)
    k, v = (torch.randn(1, KV_HEADS, n, D_HEAD, generator=make) for _ in "kv")
    return q, k, v, torch.randn(1, HEADS, n, WIDTH, generator=make)


def operations(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> dict[str, Callable[[], Any]]:
    lse = ik.attention_apply(q, k).lse
    return {
        "SDPA forward": lambda: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        ),
        "lse": lambda: ik.attention_apply(q, k).lse,
        "lse, entropy, square": lambda: ik.attention_apply(q, k, statistics=("lse", "entropy", "square")),
        "column mass": lambda: ik.attention_transpose_apply(q, k, lse),
        f"transpose, {WIDTH} columns": lambda: ik.attention_transpose_apply(q, k, lse, x),
        f"gram (A x and AᵀA x), {WIDTH} columns": lambda: ik.attention_gram_apply(q, k, lse, x),
        "channel energy": lambda: ik.channel_energy(k),
    }


def check() -> None:
    """Every operation on the CPU path against the reference; stops the benchmark where they differ."""
    tensors = inputs(257)
    with ik.use("reference"):
        expected = {name: run() for name, run in operations(*tensors).items()}
    for name, run in operations(*tensors).items():
        for a, b in zip(_tensors(run()), _tensors(expected[name]), strict=True):
            if ((a - b).abs() / b.abs().clamp_min(1)).max() > 1e-5:
                sys.exit(f"{name} disagrees with its reference here; timings would mean nothing")


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for t in value if isinstance(t, Tensor)]


@torch.no_grad()
def main() -> None:
    check()
    rows = []
    for n in LENGTHS:
        timed = operations(*inputs(n))
        taken: dict[str, list[float]] = {name: [] for name in timed}
        for round_ in range(ROUNDS + 1):
            for name, run in timed.items():
                gc.collect()
                began = time.perf_counter()
                run()
                if round_:  # the first round warms up
                    taken[name].append(time.perf_counter() - began)
        for name, times in taken.items():
            ratios = [t / s for t, s in zip(times, taken["SDPA forward"], strict=True)]
            rows.append({
                "keys": n, "operation": name, "ms (median)": round(1e3 * statistics.median(times), 2),
                "x SDPA (median of pairs)": round(statistics.median(ratios), 3), "pairs": ROUNDS,
            })  # fmt: skip
    publish("kernels", rows)


if __name__ == "__main__":
    main()
