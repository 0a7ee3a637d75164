"""What looking costs: the bare model, a Lens, the probes, and a TransformerBridge, side by side.

Seconds are ratios within one process: in each round every variant reads the same tokens once, in turn, and the median
over rounds of (variant / bare model in the same round) is reported, because machines are shared and noisy. Memory is
the peak of resident memory above what the process held before the pass, each variant in a process of its own. All
variants keep only the last position's logits (all of them would be 403 MB at 2,048 tokens) except the bridge, which
cannot. Nothing is timed before the Lens' logits were found bit-identical to the bare model's.

Text: the handbook of `make bench-data` where it was fetched, else the help topics of this Python; from its beginning.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import publish

LENGTHS = (512, 1024, 2048)
ROUNDS = 9
SLOW_ROUNDS = 3
LONG = 8192
NO_SPECTRUM = ("channel_imbalance", "text_sinks")
THREE = (*NO_SPECTRUM, "attention_rank")
SLOW = ("bridge: pattern hooks", "bridge: patterns stored")


def text() -> tuple[str, str]:
    """The text and what to call it."""
    from benchmarks.long_texts import path_of
    from interp.subjects.texts import demo_text

    path = path_of("debian-handbook")
    return (
        (path.read_text(encoding="utf-8"), "debian-handbook") if path.is_file() else (demo_text(), "pydoc_data.topics")
    )


def variants(lens: Any, wanted: tuple[str, ...]) -> dict[str, Callable[[torch.Tensor], Any]]:
    """Each variant as a function of tokens `[1, pos]`; only those wanted are built (a bridge needs a second model)."""
    import interp

    model = lens.model
    made: dict[str, Callable[[torch.Tensor], Any]] = {
        "bare model": lambda ids: model(ids, use_cache=False, logits_to_keep=1).logits,
        "Lens, no hooks": lambda ids: lens(ids, logits_to_keep=1),
        "Lens, column mass of every layer": lambda ids: lens.run_with_cache(
            ids, return_type=None, logits_to_keep=1, names_filter=lambda n: n.endswith("hook_column_mass")
        ),
        "Lens, probes without spectrum": lambda ids: interp.probe(lens, ids[0], NO_SPECTRUM),
        "Lens, three probes": lambda ids: interp.probe(lens, ids[0], THREE),
    }
    if any(name in SLOW for name in wanted):
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        bridge = build_bridge_from_module(copy.deepcopy(model), type(model).__name__, hf_config=model.config)
        pattern = [(f"blocks.{i}.attn.hook_pattern", lambda value, hook: None) for i in range(lens.cfg.n_layers)]
        made["bridge: pattern hooks"] = lambda ids: bridge.run_with_hooks(ids, fwd_hooks=pattern)
        made["bridge: patterns stored"] = lambda ids: bridge.run_with_cache(
            ids, names_filter=lambda n: n.endswith("hook_pattern")
        )
    return {name: made[name] for name in wanted}


ALL = (
    "bare model",
    "Lens, no hooks",
    "Lens, column mass of every layer",
    "Lens, probes without spectrum",
    "Lens, three probes",
    *SLOW,
)


def prepared(wanted: tuple[str, ...], n: int) -> tuple[dict[str, Callable[[torch.Tensor], Any]], torch.Tensor]:
    import interp

    lens = interp.load("demo")
    tokens = lens.to_tokens(text()[0], truncate=n)
    bare = lens.model(tokens[:, :64], use_cache=False).logits
    if not torch.equal(bare, lens(tokens[:, :64])):
        sys.exit("the Lens changes the model's logits here; timings would mean nothing")
    return variants(lens, wanted), tokens


@torch.no_grad()
def seconds(lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Interleaved timings of all variants at each length."""
    functions, tokens = prepared(ALL, max(lengths))
    rows = []
    for n in lengths:
        taken: dict[str, list[float]] = {name: [] for name in functions}
        for name, run in functions.items():
            run(tokens[:, :n] if name not in SLOW else tokens[:, :64])  # warm-up
        for round_ in range(ROUNDS):
            for name, run in functions.items():
                if name in SLOW and round_ >= SLOW_ROUNDS:
                    continue
                gc.collect()
                began = time.perf_counter()
                run(tokens[:, :n])
                taken[name].append(time.perf_counter() - began)
        for name, times in taken.items():
            ratios = [t / b for t, b in zip(times, taken["bare model"], strict=False)]
            rows.append({
                "tokens": n, "variant": name, "seconds (median)": round(statistics.median(times), 3),
                "x bare (median of pairs)": round(statistics.median(ratios), 3), "pairs": len(ratios),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def memory_of(variant: str, n: int) -> dict[str, Any]:
    """Peak resident memory and seconds of one pass in a fresh process."""
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.probe_cost", "--one", variant, "--tokens", str(n)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return json.loads(out.splitlines()[-1])


@torch.no_grad()
def one(variant: str, n: int) -> None:
    """Run one variant once and print what its process held at most (Linux: the peak counter is reset before)."""
    functions, tokens = prepared((variant,), n)
    functions[variant](tokens[:, :64])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    began = time.perf_counter()
    functions[variant](tokens[:, :n])
    took = time.perf_counter() - began
    print(
        json.dumps(
            {
                "above": status("VmHWM") - before,
                "peak": status("VmHWM"),
                "seconds": took,
                "tokens": int(tokens.shape[1]),
            }
        )
    )


def status(field: str) -> float:
    """A field of /proc/self/status in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    called = text()[1]
    rows = seconds(LENGTHS)
    for row in rows:
        measured = memory_of(row["variant"], row["tokens"])
        row |= {"peak MB above start": round(measured["above"]), "text": called}
    publish("probe_cost", rows)
    long = []
    for variant in ("bare model", "Lens, probes without spectrum", "Lens, three probes"):
        measured = memory_of(variant, LONG)
        long.append({
            "tokens": measured["tokens"], "variant": variant, "seconds (one pass)": round(measured["seconds"], 1),
            "peak MB above start": round(measured["above"]), "peak MB of the process": round(measured["peak"]),
            "stored patterns would need GB": round(30 * 9 * LONG**2 * 4 / 1e9, 1), "text": called,
        })  # fmt: skip
        print(long[-1], flush=True)
    publish("probe_cost_long", long)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--one")
    parser.add_argument("--tokens", type=int)
    arguments = parser.parse_args()
    one(arguments.one, arguments.tokens) if arguments.one else main()
