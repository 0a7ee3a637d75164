"""Results that look like the probes' own, without a model: for tests of figures, reports and storage.

The shapes are those of the demo model (30 layers, 9 heads, 3 key/value heads, 64 channels) reading 1,024 tokens, and
the token text is hostile on purpose: markup, Markdown, control characters, right-to-left overrides.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

HOSTILE = [
    "<script>alert(1)</script>", "|", "`", "```", "\n", "\x00", "\x1b[31m", "<b>bold</b>", "&amp;", "%{x}", "\\", "\\n",
    "🧑‍🔬", "\u202eevil", "**", "[a](javascript:alert(1))", "</text>", "\t", "é", "漢字", "{{ 7*7 }}", "$x$", "\"", "'",
]  # fmt: skip
WORDS = [
    "the",
    "of",
    "attention",
    "channel",
    "key",
    "value",
    "token",
    "layer",
    "rank",
    "and",
    "is",
    "to",
    ",",
    ".",
    "energy",
]


def example_results(
    layers: int = 30, heads: int = 9, kv_heads: int = 3, width: int = 64, tokens: int = 1024
) -> dict[str, xr.Dataset]:
    """One dataset for each of the four first probes, by probe name."""
    rng = np.random.default_rng(0)
    sizes = {"layer": layers, "head": heads, "kv_head": kv_heads, "channel": width, "token": tokens}
    return {
        "channel_imbalance": _channel_imbalance(rng, sizes),
        "attention_rank": _attention_rank(rng, sizes),
        "text_sinks": _text_sinks(rng, sizes),
        "logit_lens": _logit_lens(rng, sizes),
    }


def example_text(tokens: int) -> list[str]:
    """Ordinary words with one hostile token in every eight."""
    rng = np.random.default_rng(1)
    words = [" " + WORDS[i] for i in rng.integers(0, len(WORDS), tokens)]
    words[::8] = [HOSTILE[i % len(HOSTILE)] for i in range(len(words[::8]))]
    return words


def _dataset(
    name: str, variables: dict, sizes: dict[str, int], coords: dict | None = None, **attrs: str | float
) -> xr.Dataset:
    arrays = {
        key: (
            dims,
            np.asarray(value) if np.asarray(value).dtype.kind in "USOi" else np.asarray(value, "float32"),
            {"units": "1", "description": key},
        )
        for key, (dims, value) in variables.items()
    }
    ds = xr.Dataset(
        arrays,
        coords or {},
        {"title": name.replace("_", " ").capitalize(), "description": f"Example of {name}.", **attrs},
    )
    return ds.assign_coords({d: np.arange(n) for d, n in sizes.items() if d in ds.dims and d not in ds.coords})


def _channel_imbalance(rng: np.random.Generator, sizes: dict[str, int]) -> xr.Dataset:
    layers, kv_heads, width = (sizes[d] for d in ("layer", "kv_head", "channel"))
    bins = min(64, sizes["token"])
    energy = rng.lognormal(0, 0.5, (3, layers, kv_heads, width))
    energy[:2, :, :, rng.integers(0, width, 3)] *= rng.lognormal(4, 1, (2, layers, kv_heads, 3))
    magnitude = np.sqrt(energy)[..., None, :] * rng.uniform(0.7, 1.3, (3, layers, kv_heads, bins, width))
    per_head = ("tensor", "layer", "kv_head")
    variables = {
        "energy": ((*per_head, "channel"), energy),
        "max_over_median": (per_head, energy.max(-1) / np.median(energy, -1)),
        "top10_share": (per_head, np.sort(energy, -1)[..., -(width // 10) :].sum(-1) / energy.sum(-1)),
        "gini": (per_head, rng.uniform(0.2, 0.9, energy.shape[:3])),
        "participation_ratio": (per_head, rng.uniform(0.1, 0.9, energy.shape[:3])),
        "token_consistency": (per_head, rng.uniform(0.2, 0.9, energy.shape[:3])),
        "magnitude": ((*per_head, "token_bin", "channel"), magnitude),
    }
    coords = {"tensor": ["key_pre_rotary", "key", "value"], "token_bin": np.arange(bins) * (sizes["token"] // bins)}
    return _dataset("channel_imbalance", variables, sizes, coords)


def _attention_rank(rng: np.random.Generator, sizes: dict[str, int]) -> xr.Dataset:
    layers, heads, width = (sizes[d] for d in ("layer", "head", "channel"))
    k = min(32, sizes["token"])
    decay = rng.uniform(0.05, 1.2, (layers, heads, 1))
    sigma = 20 * np.exp(-decay * np.arange(k)) + 0.01
    total = (sigma**2).sum(-1) * rng.uniform(1.0, 1.4, (layers, heads))
    energy = np.cumsum(sigma**2, -1) / total[..., None]
    rank90 = np.where(energy[..., -1] >= 0.9, 1 + (energy < 0.9).sum(-1), k + 1).astype("int64")
    score = 50 * np.exp(-rng.uniform(0.02, 0.3, (layers, heads, 1)) * np.arange(width))
    score_energy = np.cumsum(score**2, -1) / (score**2).sum(-1, keepdims=True)
    per_head = ("layer", "head")
    variables = {
        "singular_value": ((*per_head, "component"), sigma),
        "energy": ((*per_head, "component"), energy),
        "sigma_share": ((*per_head, "component"), np.cumsum(sigma, -1) / (1.3 * sigma.sum(-1, keepdims=True))),
        "frobenius_squared": (per_head, total),
        "rank90": (per_head, rank90),
        "rank90_censored": (per_head, (rank90 > k).astype("int8")),
        "nuclear_norm": (per_head, 1.3 * sigma.sum(-1)),
        "nuclear_norm_error": (per_head, 0.01 * sigma.sum(-1)),
        "effective_rank": (per_head, rng.uniform(2, 90, (layers, heads))),
        "effective_rank_error": (per_head, rng.uniform(0, 1, (layers, heads))),
        "score_singular_value": ((*per_head, "channel"), score),
        "score_energy": ((*per_head, "channel"), score_energy),
        "score_rank90": (per_head, (1 + (score_energy < 0.9).sum(-1)).astype("int64")),
        "score_effective_rank": (per_head, rng.uniform(2, width, (layers, heads))),
    }
    coords = {"component": np.arange(1, k + 1), "channel": np.arange(1, width + 1)}
    attrs = {"n_tokens": sizes["token"], "k": k, "method": "block Krylov", "passes": 4, "d_head": width}
    return _dataset("attention_rank", variables, sizes, coords, **attrs)


def _text_sinks(rng: np.random.Generator, sizes: dict[str, int]) -> xr.Dataset:
    layers, heads, kv_heads, tokens = (sizes[d] for d in ("layer", "head", "kv_head", "token"))
    received = rng.lognormal(-7, 1, (layers, heads, tokens))
    sink = np.where(np.arange(layers) % 10 < 6, 0, min(16, tokens - 1))
    received[np.arange(layers), :, sink] = rng.uniform(0.2, 0.7, (layers, heads))
    seen = tokens - np.arange(tokens)
    received[..., seen < max(min(64, tokens // 2), tokens / 8)] = np.nan
    epsilon = np.array([0.3, 0.8])
    alpha = received[..., 0]
    residual_max = rng.lognormal(6, 1, layers)
    per_head = ("layer", "head")
    variables = {
        "column_mass": ((*per_head, "token"), np.nan_to_num(received) * seen),
        "mean_received": ((*per_head, "token"), received),
        "primary_sink": (("layer",), sink.astype("int64")),
        "primary_sink_share": (("layer",), received[np.arange(layers), :, sink].mean(-1)),
        "alpha_first": (per_head, alpha),
        "is_sink": (("epsilon", *per_head), (alpha > epsilon[:, None, None]).astype("int8")),
        "sink_rate": (("epsilon",), 100 * (alpha > epsilon[:, None, None]).mean((1, 2))),
        "residual_max": (("layer",), residual_max),
        "residual_median": (("layer",), np.full(layers, 0.5)),
        "psi": (("layer",), residual_max / 0.5),
        "massive": (("layer",), (residual_max > 500).astype("int8")),
        "massive_position": (("layer",), sink.astype("int64")),
        "massive_channel": (("layer",), rng.integers(0, 576, layers)),
        "sink_key_norm": (("layer", "kv_head"), rng.uniform(0.2, 1, (layers, kv_heads))),
        "sink_value_norm": (("layer", "kv_head"), rng.uniform(0.05, 0.5, (layers, kv_heads))),
        "sink_cosine": (per_head, rng.uniform(0.2, 0.9, (layers, heads))),
        "median_cosine": (per_head, rng.uniform(-0.2, 0.3, (layers, heads))),
    }
    coords = {"epsilon": epsilon, "token_text": ("token", np.array(example_text(tokens), dtype=object))}
    return _dataset("text_sinks", variables, sizes, coords, n_tokens=tokens, T=tokens, k=0)


def _logit_lens(rng: np.random.Generator, sizes: dict[str, int]) -> xr.Dataset:
    layers, heads = sizes["layer"], sizes["head"]
    rise = np.linspace(-8, 3, layers)
    variables = {
        "lens_probability": (("layer",), 1 / (1 + np.exp(-rise))),
        "lens_rank": (("layer",), np.geomspace(20000, 1, layers).astype("int64")),
        "lens_top_token": (("layer",), np.array(example_text(8 * layers)[::8], dtype=object)),
        "kl_to_final": (("layer",), np.linspace(9, 0, layers)),
        "attention_attribution": (("layer",), rng.normal(0, 0.5, layers)),
        "mlp_attribution": (("layer",), rng.normal(0, 0.8, layers)),
        "head_attribution": (("layer", "head"), rng.normal(0, 0.2, (layers, heads))),
        "embed_attribution": ((), 0.1),
    }
    return _dataset("logit_lens", variables, sizes)
