"""Results that look like those of `interp.icl`, without a model: for tests of figures.

Sizes are those of `tests.example_results`: `layers` of a regressor, `width` coordinates of x, and as many training
steps, numbers of algorithm steps and prompt tokens as `tokens` allows.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from tests.example_results import HOSTILE, _dataset


def example_measurements(
    layers: int = 30, heads: int = 9, kv_heads: int = 3, width: int = 64, tokens: int = 1024
) -> dict[str, xr.Dataset]:
    """One dataset for each measurement that a figure draws, by the function or probe that makes it."""
    rng = np.random.default_rng(3)
    return {
        "align": _align(rng, min(tokens, 200)),
        "icl_gd": _icl_gd(rng, layers, width),
        "best_matching_steps": _best_matching_steps(rng, layers, min(tokens, 40)),
        "copying_score": _copying_score(rng, min(tokens // 2, 40)),
        "head_scores": _head_scores(rng, layers, heads),
        "head_split": _head_split(rng, layers, heads),
    }


def _align(rng: np.random.Generator, steps: int) -> xr.Dataset:
    names = ["gd", HOSTILE[0]]
    rise = 1 - np.exp(-np.arange(steps) / 20)
    levels = {"loss_model": 0.4, "loss_algorithm": 0.2, "preds_diff": 0.4, "model_diff": 2.0, "model_cos": 1.0}
    levels |= {"grad_norm_model": 2.0, "grad_norm_algorithm": 2.1}
    variables = {}
    for name, level in levels.items():
        values = level * rise[:, None] * rng.uniform(0.9, 1.0, (steps, 2))
        variables |= {name: (("step", "algorithm"), values), f"{name}_se": (("step", "algorithm"), 0.02 * values)}
    return _dataset("align", variables, {}, {"step": 100 * np.arange(steps), "algorithm": names})


def _icl_gd(rng: np.random.Generator, layers: int, d: int) -> xr.Dataset:
    A = 0.6 * np.eye(d) + rng.normal(0, 0.02, (layers, d, d))
    variables = {
        "A_eff": (("layer", "input", "query_input"), A),
        "effective_eta": (("layer",), np.full(layers, 6.0)),
        "distance_to_identity": (("layer",), np.full(layers, 0.03)),
    }
    if layers == 1:
        variables["A_optimal"] = (("input", "query_input"), 0.6 * np.eye(d))
    return _dataset("icl_gd", variables, {"layer": layers})


def _best_matching_steps(rng: np.random.Generator, layers: int, steps: int) -> xr.Dataset:
    number = 2.0 ** np.arange(steps)
    place = np.linspace(0, steps - 1, layers)[:, None]
    similarity = np.exp(-np.abs(np.arange(steps) - place) / 5) * np.ones((3, 1, 1))
    best = number[similarity.argmax(-1)]
    best[0, 0] = np.nan
    variables = {
        "similarity": (("measure", "layer", "step"), similarity),
        "best_step": (("measure", "layer"), best),
    }
    coords = {"measure": ["errors", "predictions", "weights"], "step": number.astype("int64")}
    return _dataset("best_matching_steps", variables, {"layer": layers}, coords, algorithm=f"{HOSTILE[0]}(steps=3)")


def _copying_score(rng: np.random.Generator, pairs: int) -> xr.Dataset:
    tokens = 2 * pairs + 1
    sensitivity = rng.uniform(0, 0.01, (tokens - 2, tokens)) + 3 * np.eye(tokens - 2, tokens)
    variables = {"sensitivity": (("output", "token"), sensitivity + np.eye(tokens - 2, tokens, 1))}
    for name, value in (("own", 3.1), ("next", 1.0), ("others", 0.005)):
        variables |= {name: ((), value), f"{name}_se": ((), 0.01)}
    names = [f"{'xy'[t % 2]}{t // 2 + 1}" for t in range(tokens - 1)] + ["xq"]
    return _dataset("copying_score", variables, {"output": tokens - 2}, {"token_name": ("token", names)}, layer=0)


def _head_scores(rng: np.random.Generator, layers: int, heads: int) -> xr.Dataset:
    per_head = ("layer", "head")
    variables = {}
    for name in ("induction", "prefix_matching", "duplicate_token", "previous_token", "copying"):
        values = rng.beta(0.3, 3, (layers, heads))
        variables |= {name: (per_head, values), f"{name}_se": (per_head, 0.02 * values)}
    return _dataset("head_scores", variables, {"layer": layers, "head": heads})


def _head_split(rng: np.random.Generator, layers: int, heads: int) -> xr.Dataset:
    per_head = ("layer", "head")
    mass = rng.uniform(0, 1, (layers, heads))
    mass[0, 0] = 0
    variables = {
        "demo_mass": (per_head, mass),
        "shift_norm": (per_head, mass * 2),
        "out_query_norm": (per_head, np.full((layers, heads), 4.0)),
        "linear_cosine": (per_head, np.where(mass > 0, rng.uniform(-1, 1, (layers, heads)), np.nan)),
    }
    return _dataset("head_split", variables, {"layer": layers, "head": heads}, demonstrations=4)
