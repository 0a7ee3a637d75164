"""What cache policies cost in quality: loss of 256 tokens after a compressed prompt of 1,024, beside the bytes held.

Demo model, evenly spaced excerpts of the Debian handbook: sixteen for key channels, whose differences are small, and
eight for the others, six for `growing`. A row is a policy: mean change of the loss (nats a token) against the full
cache with a 95 % interval of the mean over excerpts (t, paired by excerpt), and the cache's bytes right after
compression. In these tables the 256 tokens are fed at once, so that a policy acts once; `bytes_alike` is the table of
tokens with budgets at which all caches are equally large. `growing` feeds them one by one, and policies that act at
every step do. `multi_head` is the table of key channels for a model without grouped queries: the demo model with each
key/value head repeated for its query heads. That computes the same function, but every query head now has channels of
its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

import interp
from benchmarks.shared_prefill import SCORED, check, readings
from benchmarks.table import publish
from interp.interventions import Intervention

Key = tuple[str, float]
"""A policy's name and its ratio or budget."""

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
BUDGETS = (0.1, 0.2, 0.4)
SHARES = (0.15, 0.25)
"""Of the full cache's bytes, where all ways to drop tokens are compared."""


def channel_policies() -> dict[Key, Intervention]:
    """Key-channel pruning by (name, ratio)."""
    made: dict[Key, Intervention] = {}
    for ratio in RATIOS:
        made |= {
            ("ThinK", ratio): interp.ThinK(ratio=ratio),
            ("key norm", ratio): interp.ThinK(ratio=ratio, selector="key_norm"),
            ("random", ratio): interp.ThinK(ratio=ratio, selector="random"),
        }
    made["ThinK", 0.9] = interp.ThinK(ratio=0.9)
    for ratio in (0.5, 0.7, 0.9):
        made |= {
            ("exact loss (gram)", ratio): interp.ThinK(ratio=ratio, selector="gram"),
            ("+ sinks", ratio): interp.ThinK(ratio=ratio, sinks=4),
            ("+ sinks, compensation", ratio): interp.ThinK(ratio=ratio, sinks=4, compensate=True),
            ("recommended", ratio): interp.ThinK.recommended(ratio),
        }
    made["+ compensation", 0.9] = interp.ThinK(ratio=0.9, compensate=True)
    made["+ sinks, compensation, mean", 0.9] = interp.ThinK(ratio=0.9, sinks=4, compensate=True, fill="mean")
    made["recommended without surgeon", 0.9] = interp.ThinK.recommended(0.9, selector="think")
    return made


def token_policies() -> dict[Key, Intervention]:
    """Token eviction by (name, budget); all with 4 sinks and a recent quarter where the method lets one choose."""
    made: dict[Key, Intervention] = {}
    for b in BUDGETS:
        quarter = {"budget": b, "sinks": 4, "recent_share": 0.25}
        made |= {
            ("random", b): interp.RandomTokens(**quarter),
            ("StreamingLLM", b): interp.StreamingLLM(budget=b),
            ("Knorm", b): interp.Knorm(budget=b, sinks=4, recent=int(1024 * b / 4)),
            ("SnapKV", b): interp.SnapKV(budget=b, sinks=4),
            ("PyramidKV", b): interp.PyramidKV(budget=b),
            ("H2O", b): interp.H2O(**quarter),
            ("Recall", b): interp.Recall(budget=b),
            ("expected attention", b): interp.ExpectedAttention(budget=b),
            ("expected attention, no recent share", b): interp.ExpectedAttention(budget=b, recent_share=0.0),
            ("D2O paper", b): interp.D2O(budget=b, variant="paper"),
            ("D2O paper, uniform layers", b): interp.D2O(budget=b, variant="paper", metric="uniform"),
            ("D2O paper, uniform, values only", b): interp.D2O(
                budget=b, variant="paper", metric="uniform", merge="value"
            ),
            ("D2O paper, log budgets, no merge", b): interp.D2O(budget=b, variant="paper", metric="log", merge="none"),
            ("D2O code, no layer skipped", b): interp.D2O(budget=b, variant="code", skip=(), compress_at="prefill_end"),
        }
        if b > 0.1:  # three full layers of 30 are a tenth of the cache already
            released = (b - 0.1) / 0.9
            made["D2O code as released, equal bytes", b] = interp.D2O(
                budget=released, variant="code", compress_at="prefill_end"
            )
    return made


def growing_policies() -> dict[Key, Intervention]:
    """What acts at every step, at a fifth of the tokens; the other methods give the same as when fed at once."""
    b = 0.2
    merging = partial(interp.D2O, budget=b, variant="paper", metric="uniform")
    return {
        ("H2O", b): interp.H2O(budget=b, sinks=4, recent_share=0.25),
        ("TOVA", b): interp.TOVA(budget=b, sinks=4),
        ("D2O paper, uniform layers", b): merging(),
        ("D2O paper, uniform, values only", b): merging(merge="value"),
        ("D2O paper, uniform, no merge", b): merging(merge="none"),
    }


def equal_bytes(lens: interp.Lens) -> dict[Key, Intervention]:
    """Every way to drop tokens, each with the budget at which its cache holds a given share of the full one's bytes.

    Layer budgets and the bytes of accounts and positions make that differ from the share of tokens. A method that
    cannot hold so much on the first excerpt is left out.
    """
    shared = {"sinks": 4, "recent_share": 0.25}
    merging = partial(interp.D2O, variant="paper", metric="uniform", compress_at="prefill_end")
    released = partial(interp.D2O, variant="code", compress_at="prefill_end")
    methods: dict[str, Callable[[float], Intervention]] = {
        "random": lambda b: interp.RandomTokens(budget=b, **shared),
        "StreamingLLM": lambda b: interp.StreamingLLM(budget=b),
        "SnapKV": lambda b: interp.SnapKV(budget=b, sinks=4),
        "PyramidKV": lambda b: interp.PyramidKV(budget=b),
        "H2O": lambda b: interp.H2O(budget=b, **shared),
        "Recall": lambda b: interp.Recall(budget=b),
        "D2O paper": lambda b: interp.D2O(budget=b, variant="paper"),
        "D2O paper, uniform layers": lambda b: merging(budget=b),
        "D2O paper, uniform, values only": lambda b: merging(budget=b, merge="value"),
        "D2O paper, uniform, no merge": lambda b: merging(budget=b, merge="none"),
        "D2O code as released": lambda b: released(budget=b),
        "D2O code, no layer skipped": lambda b: interp.D2O(
            budget=b, variant="code", skip=(), compress_at="prefill_end"
        ),
    }
    read = next(readings(lens, 1))
    full = read.cache(None).nbytes()
    found: dict[Key, Intervention] = {}
    for share in SHARES:
        for name, method in methods.items():
            budget, held = share, 0
            for _ in range(6):
                held = read.cache(method(budget)).nbytes()
                if abs(held / full / share - 1) < 0.01:
                    found[name, share] = method(budget)
                    break
                budget = min(0.99, max(0.01, budget * share * full / held))
            print(f"{name} at {share:.0%} of the bytes: budget {budget:.3f}, {held / full:.3f}", flush=True)
    return found


def without_groups(lens: interp.Lens) -> interp.Lens:
    """A multi-head twin: key and value projections repeated for every query head of their group."""
    config = copy.deepcopy(lens.model.config)
    group, config.num_key_value_heads = config.num_attention_heads // config.num_key_value_heads, lens.cfg.n_heads
    weights = {
        name: weight.unflatten(0, (-1, lens.cfg.d_head)).repeat_interleave(group, 0).flatten(0, 1)
        if name.endswith(("k_proj.weight", "v_proj.weight"))
        else weight
        for name, weight in lens.model.state_dict().items()
    }
    model = type(lens.model)(config).eval()
    model.load_state_dict(weights)
    return interp.load(model, tokenizer=lens.tokenizer)


def losses(
    policies: dict[Key, Intervention], lens: interp.Lens, chunk: int, excerpts: int
) -> tuple[dict[Key, np.ndarray], dict, np.ndarray]:
    """(mean loss of each excerpt by policy, bytes by policy, mean loss with the full cache)."""
    found: dict[Key, list[float]] = {key: [] for key in policies}
    held: dict[Key, int] = {}
    full = []
    for i, read in enumerate(readings(lens, excerpts)):
        if i == 0:
            check(read, next(iter(policies.values())))
        nll, bytes_full = read.score(None)
        full.append(nll.mean())
        held["full cache", 0.0] = bytes_full
        for key, policy in policies.items():
            nll, held[key] = read.score(policy, chunk)
            found[key].append(nll.mean())
        print(f"excerpt {i + 1} of {excerpts}: full cache {full[-1]:.3f}", flush=True)
    return {key: np.array(values) for key, values in found.items()}, held, np.array(full)


def row(name: str, setting: float, change: np.ndarray, held: int, full: int) -> dict[str, Any]:
    half = stats.t.ppf(0.975, len(change) - 1) * stats.sem(change)
    return {
        "policy": name, "setting": setting, "change of loss": round(change.mean(), 4), "± 95 %": round(half, 4),
        "MB": round(held / 1e6, 2), "of full": round(held / full, 3),
        "by excerpt": " ".join(f"{x:.3f}" for x in change),
    }  # fmt: skip


def pairs(found: dict[Key, np.ndarray], chain: tuple[str, ...]) -> list[dict[str, Any]]:
    """Paired differences along a chain of policies that should get worse: mean, interval, at every setting."""
    rows = []
    for setting in sorted({setting for _, setting in found}):
        for better, worse in pairwise(chain):
            if (better, setting) in found and (worse, setting) in found:
                gap = found[worse, setting] - found[better, setting]
                half = stats.t.ppf(0.975, len(gap) - 1) * stats.sem(gap)
                rows.append({
                    "setting": setting, "better": better, "worse": worse, "difference": round(gap.mean(), 4),
                    "± 95 %": round(half, 4), "excerpts that agree": int((gap > 0).sum()), "of": len(gap),
                })  # fmt: skip
    return rows


CHANNELS = ("recommended", "ThinK", "key norm", "random")
TOKENS = ("Recall", "H2O", "SnapKV", "StreamingLLM", "random")


def channels() -> None:
    _publish("cache_quality_channels", channel_policies(), CHANNELS, excerpts=16)


def multi_head() -> None:
    wanted = {key: policy for key, policy in channel_policies().items() if key[0] in CHANNELS}
    _publish("cache_quality_multi_head", wanted, CHANNELS, model=without_groups)


def tokens() -> None:
    _publish("cache_quality_tokens", token_policies(), TOKENS)


def bytes_alike() -> None:
    _publish("cache_quality_bytes", equal_bytes(interp.load("demo")), TOKENS)


def growing() -> None:
    _publish("cache_quality_growing", growing_policies(), TOKENS, chunk=1, excerpts=6)


def _publish(
    name: str,
    policies: dict[Key, Intervention],
    chain: tuple[str, ...],
    model: Callable[[interp.Lens], interp.Lens] = lambda lens: lens,
    chunk: int = SCORED,
    excerpts: int = 8,
) -> None:
    found, held, full = losses(policies, model(interp.load("demo")), chunk, excerpts)
    whole = held["full cache", 0.0]
    publish(name, [row(*key, values - full, held[key], whole) for key, values in found.items()])
    if compared := pairs(found, chain):
        publish(f"{name}_pairs", compared)


def main() -> None:
    channels()
    multi_head()
    tokens()
    bytes_alike()
    growing()


if __name__ == "__main__":
    main()
