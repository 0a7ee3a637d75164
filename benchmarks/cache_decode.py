"""Decoding with a compressed cache: one attention call, and tokens per second of the whole model, beside dense forms.

The attention call is compared with three dense forms, of which the fastest counts: SDPA with grouped heads, SDPA with
the group as query rows, and two batched products. The whole model decodes from caches filled with random keys and
values of the right shape, because the time does not depend on what they hold; tokens come from the same text for all.
Everything is interleaved in one process; ratios are medians over rounds. Peak memory is measured by `cache_memory`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from interp_kernels import KeySegment, packed_decode
from torch.nn.functional import scaled_dot_product_attention as sdpa

from benchmarks.table import publish

HEADS, KV_HEADS, D = 9, 3, 64  # the demo model's
LENGTHS = (2048, 4096, 8192)
RATIOS = (0.4, 0.5, 0.7)
RECENT = 32
LAYERS = 30  # as many as the model has, one after the other: what a layer reads is in no processor cache
PASSES = 15
ROUNDS = 8
DECODED = 8


def dense_forms(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    rows = q.view(1, KV_HEADS, -1, D)

    def products() -> torch.Tensor:
        return torch.softmax(rows @ k.mT * D**-0.5, -1) @ v

    return {
        "dense: SDPA, grouped heads": lambda: sdpa(q, k, v, enable_gqa=True),
        "dense: SDPA, group as rows": lambda: sdpa(rows, k, v),
        "dense: two products": products,
    }


def packed_form(k: torch.Tensor, v: torch.Tensor, ratio: float, q: torch.Tensor) -> Callable[[], Any]:
    kept = torch.rand(1, KV_HEADS, D).argsort(-1)[..., int(D * ratio) :].sort(-1).values.to(torch.int16)
    index = kept.long()[:, :, None].expand(-1, -1, k.shape[2] - RECENT, -1)
    major = lambda x: x.mT.contiguous().mT  # noqa: E731  as a packed segment of the cache is laid out
    old = KeySegment(major(k[:, :, :-RECENT].gather(-1, index)), major(v[:, :, :-RECENT]), kept)
    recent = KeySegment(k[:, :, -RECENT:].clone(), v[:, :, -RECENT:].clone())
    return lambda: packed_decode(q, [old, recent], mass=False)


def attention_calls() -> list[dict[str, Any]]:
    rows = []
    for n in LENGTHS:
        torch.manual_seed(n)
        layers: list[dict[str, Callable[[], Any]]] = []
        for _ in range(LAYERS):
            q, k, v = torch.randn(1, HEADS, 1, D), torch.randn(1, KV_HEADS, n, D), torch.randn(1, KV_HEADS, n, D)
            layers.append(dense_forms(q, k, v) | {f"packed, ratio {r}": packed_form(k, v, r, q) for r in RATIOS})
        dense = packed_decode(q, [KeySegment(k, v)]).z
        for name, form in dense_forms(q, k, v).items():
            torch.testing.assert_close(form().reshape_as(dense), dense, msg=f"{name} computes something else")
        taken: dict[str, list[float]] = {name: [] for name in layers[0]}
        for round_ in range(PASSES + 2):
            for name, times in taken.items():
                began = time.perf_counter()
                for layer in layers:
                    layer[name]()
                if round_ >= 2:
                    times.append((time.perf_counter() - began) / LAYERS)
        typical = {name: statistics.median(times) for name, times in taken.items()}
        best = min(t for name, t in typical.items() if name.startswith("dense"))
        rows += [
            {"tokens": n, "form": name, "microseconds": round(t * 1e6), "x fastest dense": round(t / best, 3)}
            for name, t in typical.items()
        ]
    return rows


@torch.no_grad()
def whole_model() -> list[dict[str, Any]]:
    import interp
    from interp.cache.lens_cache import LensCache
    from interp.interventions.base import parts
    from interp.interventions.keeper import Keeper
    from interp.seam.event import AttentionEvent
    from interp.subjects.texts import demo_text

    lens = interp.load("demo")
    layers = tuple(range(lens.cfg.n_layers))
    fed = lens.to_tokens(demo_text(), truncate=DECODED)

    def filled(policy: Any, n: int) -> LensCache:
        keeper = None if policy is None else Keeper(parts(policy), lens.cfg, layers, lens.output_norms)
        cache = LensCache(lens.model.config, keeper)
        if keeper is not None:
            keeper.expect(n)
        for layer in layers:
            q, k, v = (torch.randn(1, heads, n, D) for heads in (HEADS, KV_HEADS, KV_HEADS))
            cache.update(k, v, layer)
            if keeper is not None:
                event = AttentionEvent(layer, q, k, v, D**-0.5)
                keeper.attended(layer, cache.stored, q, lambda event=event: event)
        return cache

    policies = {
        "full cache": None,
        **{f"ThinK(ratio={r})": interp.ThinK(ratio=r) for r in (0.4, 0.5, 0.7, 0.8)},
        "SnapKV(budget=0.2)": interp.SnapKV(budget=0.2),
        "H2O(budget=0.2)": interp.H2O(budget=0.2),
        "D2O(budget=0.2)": interp.D2O(budget=0.2, compress_at="prefill_end"),
    }
    rows = []
    for n in (2048, 7936):
        taken: dict[str, list[float]] = {name: [] for name in policies}
        caches = {name: filled(policy, n) for name, policy in policies.items()}
        held = {name: cache.nbytes() for name, cache in caches.items()}
        for round_ in range(ROUNDS):
            for name, cache in caches.items():
                for i in range(DECODED):
                    began = time.perf_counter()
                    lens(fed[:, i : i + 1], past_key_values=cache, use_cache=True)
                    if round_ and i:  # the first token after another cache finds nothing of its own in the processor
                        taken[name].append(time.perf_counter() - began)
        full = statistics.median(taken["full cache"])
        rows += [
            {
                "tokens": n, "cache": name, "MB held": round(held[name] / 1e6, 1),
                "tokens/s": round(1 / statistics.median(times), 2),
                "x full cache's speed": round(full / statistics.median(times), 3),
            }
            for name, times in taken.items()
        ]  # fmt: skip
    return rows


def main() -> None:
    publish("cache_decode_attention", attention_calls())
    publish("cache_decode", whole_model())


if __name__ == "__main__":
    main()
