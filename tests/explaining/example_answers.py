"""Answers that look like `interp.explain`'s own, without a model: for tests of figures and storage.

Shapes and hostile token text are those of `tests.example_results`.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from tests.example_results import _dataset, example_text


def example_answers(
    layers: int = 30, heads: int = 9, kv_heads: int = 3, width: int = 64, tokens: int = 1024
) -> dict[str, xr.Dataset]:
    """One dataset for each question, by its name; an eighth of the tokens are steps."""
    rng = np.random.default_rng(2)
    steps = max(1, tokens // 8)
    sizes = {"layer": layers, "head": heads, "kv_head": kv_heads, "channel": width, "token": tokens, "step": steps}
    text = np.array(example_text(tokens), dtype=object)
    by_step = {"step_text": ("step", text[:steps]), "next_text": ("step", text[-steps:])}
    return {
        "ledger": _ledger(rng, sizes, text),
        "masks": _masks(rng, sizes),
        "missed_mass": _missed_mass(rng, sizes, text, by_step),
        "perturbation": _perturbation(rng, sizes, by_step),
        "attribution": _attribution(rng, sizes, text),
    }


def _ledger(rng: np.random.Generator, sizes: dict[str, int], text: np.ndarray) -> xr.Dataset:
    layers, tokens, n = sizes["layer"], sizes["token"], min(20_000, 4 * sizes["token"] * sizes["layer"])
    evicted, target = rng.integers(0, tokens, (2, n))
    share = rng.uniform(0, 1, (layers, tokens))
    kinds = ["word", "part of a word", "number", "punctuation", "white space", "other"]
    rows = ("eviction",)
    variables = {
        "layer": (rows, rng.integers(0, layers, n)),
        "head": (rows, rng.integers(0, sizes["kv_head"], n)),
        "step": (rows, np.full(n, tokens)),
        "evicted_position": (rows, evicted),
        "evicted_text": (rows, text[evicted].astype(str)),
        "target_position": (rows, target),
        "similarity": (rows, rng.uniform(-1, 1, n)),
        "merged": (rows, rng.integers(0, 2, n)),
        "layer_evicted": (("policy_layer", "token"), share),
        "kind_share": (("kind",), np.full(6, 1 / 6)),
        "kind_evicted": (("kind",), np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])),
    }
    coords = {"policy_layer": np.arange(layers), "kind": kinds, "token_text": ("token", text)}
    return _dataset("ledger", variables, {"token": tokens}, coords)


def _masks(rng: np.random.Generator, sizes: dict[str, int]) -> xr.Dataset:
    layers, heads = sizes["layer"], sizes["kv_head"]
    variables = {
        "overlap_heads": (("layer", "kv_head", "other_head"), rng.uniform(0.1, 0.6, (layers, heads, heads))),
        "overlap_layers": (("layer", "other_layer"), rng.uniform(0.1, 0.6, (layers, layers))),
        "overlap_prompts": (("layer", "kv_head", "prompt", "other_prompt"), rng.uniform(0, 1, (layers, heads, 2, 2))),
        "drift": (("layer", "kv_head", "checkpoint"), rng.uniform(0.5, 1, (layers, heads, 3))),
        "kept": (("layer", "kv_head", "channel"), rng.integers(0, 2, (layers, heads, sizes["channel"]))),
        "chance": ((), 0.3),
    }
    coords = {"other_layer": np.arange(layers), "checkpoint": [4, 8, 12], "prompt": [0, 1]}
    attrs = {"kept_channels": sizes["channel"] // 2, "of": "keys"}
    return _dataset("masks", variables, {k: sizes[k] for k in ("layer", "kv_head", "channel")}, coords, **attrs)


def _missed_mass(rng: np.random.Generator, sizes: dict[str, int], text: np.ndarray, by_step: dict) -> xr.Dataset:
    shape = (sizes["layer"], sizes["head"], sizes["step"])
    per_step = ("layer", "head", "step")
    missed = rng.uniform(0, 0.3, shape)
    variables = {
        "missed_mass": (per_step, missed),
        "least_missed": (per_step, missed / 2),
        "output_error": (per_step, rng.uniform(0, 0.5, shape)),
        "logit_error": (per_step, rng.uniform(0, 0.1, shape)),
        "missed_of_token": (("layer", "token"), rng.uniform(0, 0.01, (sizes["layer"], sizes["token"]))),
    }
    return _dataset("missed_mass", variables, sizes, {"token_text": ("token", text), **by_step})


def _perturbation(rng: np.random.Generator, sizes: dict[str, int], by_step: dict) -> xr.Dataset:
    shape = (sizes["layer"], sizes["step"])
    variables = {
        "layer_error": (("layer", "step"), rng.uniform(0, 0.5, shape)),
        "attn_out_error": (("layer", "step"), rng.uniform(0, 0.5, shape)),
        "nll_full": (("step",), rng.uniform(0, 5, shape[1])),
        "nll_difference": (("step",), rng.normal(0, 0.2, shape[1])),
    }
    return _dataset("perturbation", variables, sizes, by_step)


def _attribution(rng: np.random.Generator, sizes: dict[str, int], text: np.ndarray) -> xr.Dataset:
    samples = 64
    effect = rng.normal(0, 0.01, (samples, 4))
    at = rng.integers(0, sizes["token"], samples)
    one = ("sample",)
    variables = {
        "effect": (("sample", "step"), effect),
        "mean_effect": (one, np.abs(effect).mean(-1)),
        "score": (one, rng.lognormal(0, 1, samples)),
        "layer": (one, rng.integers(0, sizes["layer"], samples)),
        "kv_head": (one, rng.integers(0, sizes["kv_head"], samples)),
        "position": (one, at),
        "token_text": (one, text[at].astype(str)),
        "random": (one, np.arange(samples) % 2),
        "full": (("step",), rng.normal(0, 1, 4)),
        "pruned": (("step",), rng.normal(0, 1, 4)),
        "spearman": (("sampled", "against"), rng.uniform(-1, 1, (2, 2))),
    }
    coords = {"sampled": ["random half", "all"], "against": ["score", "score_share"]}
    return _dataset("attribution", variables, {"sample": samples, "step": 4}, coords, of="tokens")
