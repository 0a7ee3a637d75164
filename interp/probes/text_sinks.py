"""Attention sinks and massive activations: which tokens absorb attention, and where the residual stream explodes.

Sinks: Sink_k of Gu et al. 2025 (arXiv:2410.10781), the share of heads that give more than epsilon of their attention to
one position. Massive activations: Sun et al. 2024 (arXiv:2402.17762), a block output with |x| > 100 and more than 1,000
times the median of all |x|. The two often coincide and are measured apart, because either exists without the other.

How much attention a key receives is averaged over the queries that can see it, and counts only where these are many;
otherwise the last tokens, seen by hardly anybody but themselves, would win. Learned sinks (gpt-oss) take their mass out
of the pattern: rows then sum to less than 1, and `learned_sink_mass` says by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from interp_kernels import residual_census

from interp.errors import InterpError
from interp.probes.base import Context, Fold, Probe
from interp.results.columns import Column, number
from interp.results.described import Row, described
from interp.results.naming import layers_named, quoted
from interp.results.ragged import stacked
from interp.results.wording import among
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor

MASSIVE = 100.0
MASSIVE_OVER_MEDIAN = 1000.0
FEWEST_QUERIES = 64


@dataclass(frozen=True)
class TextSinks(Probe):
    """Attention received by every token, each layer's sink and its geometry, Sink_k, massive activations.

    T, the number of tokens read, is stored with every rate because Sink_k falls with it: the paper reads 64 tokens.

    Args:
        epsilon: share of attention above which a head counts as sinking, between 0 and 1, or several of them.
        position: the k of Sink_k counted from 0 (the paper counts from 1).

    Examples:
        >>> sinks = interp.probe(lens, prompt, interp.TextSinks(epsilon=(0.2, 0.3)))["text_sinks"]
        >>> sinks.sink_rate.epsilon.values
        array([0.2, 0.3])
    """

    name: ClassVar[str] = "text_sinks"
    epsilon: float | tuple[float, ...] = (0.3,)
    position: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", self.thresholds)
        if not self.thresholds or not all(0 < e < 1 for e in self.thresholds):
            raise InterpError(f"text_sinks: epsilon should be numbers between 0 and 1, found {self.epsilon}.")
        if self.position < 0:
            raise InterpError(f"text_sinks: position should be 0 or more, found {self.position}.")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Every epsilon, however many were given."""
        return (self.epsilon,) if isinstance(self.epsilon, (int, float)) else tuple(self.epsilon)

    def begin(self, context: Context) -> Fold:
        if self.position >= context.n_tokens:
            raise InterpError(f"text_sinks: position {self.position} lies beyond the text's {context.n_tokens} tokens.")
        return SinkFold(self, context)

    def findings(self, result: xr.Dataset) -> list[str]:
        text = result["token_text"].values
        named = [f"token {i} {quoted(text[i])}" for i in result["primary_sink"].values]
        share = result["primary_sink_share"].values
        layers = result["layer"].values.tolist()
        where = "; ".join(f"{layers_named(run)}: {name}" for name, run in _runs(layers, named))
        k, tokens = result.attrs["k"], result.attrs["T"]
        if tokens == 1:
            return ["A text of one token gives it all its attention, so there is no sink.", self._massive(result, text)]
        if not np.isfinite(share).any():
            return ["No layer has a sink: its attention could not be computed."]
        low, high = (f"{x:.0%}" for x in (np.nanmin(share), np.nanmax(share)))
        most = f"most in layer {layers[np.nanargmax(share)]}, {high}" if low != high else f"{high} wherever it is known"
        sentences = [
            f"Attention sinks, by layer: {where}.",
            f"The sink receives more than 60 % of the attention in {(share > 0.6).sum()} of "
            f"{np.isfinite(share).sum()} layers and more than 30 % in {(share > 0.3).sum()} (mean over heads, "
            f"{tokens:,} tokens){among(share, 'layers')}; {most}.",
        ]
        for epsilon, rate in zip(result["epsilon"].values, result["sink_rate"].values, strict=True):
            sentences.append(
                f"Sink_{k + 1} at epsilon {epsilon:g} is {rate:.1f} %: that share of heads gives more than "
                f"{epsilon:.0%} of its attention to token {k} {quoted(text[k])} (T = {tokens:,})."
            )
        sentences.append(self._massive(result, text))
        if "learned_sink_mass" in result:
            mass = float(result["learned_sink_mass"].mean())
            known = among(result["learned_sink_mass"].mean("head", skipna=False).values, "layers")
            sentences.append(
                f"Learned sink logits absorb {mass:.0%} of the attention (mean over heads){known}; the pattern's rows "
                "sum to that much less than 1, so Sink_k is not comparable with models without them."
            )
        return sentences

    @classmethod
    def columns(cls, result: xr.Dataset) -> list[Column]:
        position, share = result["primary_sink"].values.astype(int), result["primary_sink_share"].values
        words = [str(result["token_text"].values[at]) for at in position]
        found = [
            Column("sink at", "position of the primary sink, from 0", [f"{at:,}" for at in position]),
            Column("sink token", "its text", words, is_token=True),
            Column("share", "attention it receives, mean over heads", [f"{x:.1%}" for x in share]),
        ]
        if "psi" in result:
            about = "largest over median magnitude of the block's output"
            found.append(Column("Ψ", about, [number(x) for x in result["psi"].values]))
        return found

    def _massive(self, result: xr.Dataset, text: np.ndarray) -> str:
        layers, psi = result["layer"].values, result["psi"].values
        if not np.isfinite(psi).any():
            return "No block's output has a median to compare its largest activation with."
        top = int(np.where(np.isfinite(psi), psi, -np.inf).argmax())
        at, channel = int(result["massive_position"][top]), int(result["massive_channel"][top])
        peak = (
            f"Ψ, the largest activation over the median, {'peaks at' if len(psi) > 1 else 'is'} {psi[top]:,.0f} in "
            f"layer {layers[top]} "
            f"({float(result['residual_max'][top]):,.0f} in channel {channel} of token {at} {quoted(text[at])})"
        )
        massive = layers[result["massive"].values > 0].tolist()
        if not massive:
            return f"No block puts out a massive activation (above 100 and 1,000 times the median); {peak}."
        where = layers_named(massive)
        return f"Massive activations (above 100 and 1,000 times the median) come out of {where}; {peak}."


class SinkFold(Fold):
    def __init__(self, probe: TextSinks, context: Context) -> None:
        self.probe, self.context = probe, context
        self.attention: dict[int, dict[str, np.ndarray]] = {}
        self.residual: dict[int, dict[str, Any]] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        return {"attn.hook_event": self.attend, "hook_resid_post": self.leave}

    def attend(self, layer: int, event: AttentionEvent) -> None:
        mass = event.column_mass[0].float()
        queries, keys = event.q.shape[2], event.k.shape[2]
        seen = seen_by(event.facts, queries, keys).to(mass.device)
        mean = mass / seen.clamp_min(1)
        enough = max(FEWEST_QUERIES, queries / 8) if queries >= FEWEST_QUERIES else queries / 8
        fewest = min(enough, int(seen.max()))  # in a layer with a narrow window no key is seen by that many
        counted = torch.where(seen >= fewest, mean, torch.nan)
        by_token = counted.mean(0)
        sink = int(by_token.nan_to_num(nan=-1.0).argmax())
        numbers = {
            "column_mass": mass,
            "mean_received": counted,
            "fewest_queries": torch.tensor(fewest).ceil(),
            "primary_sink": torch.tensor(sink),
            "primary_sink_share": by_token[sink],
            "alpha_first": mean[:, self.probe.position],
            **geometry(event.q[0].float(), event.k[0].float(), event.v[0].float(), sink),
        }
        if event.sink_logits is not None:
            log_odds = event.sink_logits[0].float() - event.lse[0].float()
            numbers["learned_sink_mass"] = log_odds.sigmoid().mean(-1)
        self.attention[layer] = {name: value.cpu().numpy() for name, value in numbers.items()}

    def leave(self, layer: int, residual: Tensor) -> None:
        census = residual_census(residual[:1], top=1)
        largest, middle = census.text_value[0, 0], census.median[0]
        numbers = {
            "residual_max": largest,
            "residual_median": middle,
            "psi": census.psi[0],
            "massive": (largest > MASSIVE) & (largest > MASSIVE_OVER_MEDIAN * middle),
            "massive_position": census.text_token[0, 0],
            "massive_channel": census.text_channel[0, 0],
        }
        self.residual[layer] = {name: value.cpu().numpy() for name, value in numbers.items()}

    def result(self) -> xr.Dataset:
        layers = sorted(self.attention)
        seen = [self.attention[layer] | self.residual[layer] for layer in layers]
        counted = {"T": self.context.n_tokens, "k": self.probe.position}
        data = {}
        for name, (dims, dtype, units, description) in VARIABLES.items():
            known = next((numbers[name] for numbers in seen if name in numbers), None)
            if known is not None:  # not every model, and not every layer, has learned sinks
                missing = np.full(np.shape(known), np.nan)
                values = stacked([numbers.get(name, missing) for numbers in seen], dtype)
                about = counted if name == "alpha_first" else {}
                data[name] = Row(("layer", *dims), values, units, description, about)
        above = np.stack([data["alpha_first"].values > epsilon for epsilon in self.probe.thresholds])
        said = "1 where alpha_first exceeds epsilon"
        data["is_sink"] = Row(("epsilon", "layer", "head"), above.astype(np.int8), "1", said, counted)
        said = "Sink_k: share of all heads with alpha_first above epsilon"
        heads = np.isfinite(data["alpha_first"].values).sum()  # layers may differ in how many they have
        data["sink_rate"] = Row(("epsilon",), above.sum((1, 2)) / heads * 100, "%", said, counted)
        coordinates = {
            "layer": layers,
            "head": np.arange(above.shape[2]),
            "kv_head": np.arange(data["sink_key_norm"].values.shape[1]),
            "token": np.arange(self.context.n_tokens),
            "token_text": ("token", np.array(self.context.str_tokens, dtype=object)),
            "epsilon": list(self.probe.thresholds),
        }
        attrs = {
            "title": "Attention sinks and massive activations",
            "description": "Attention that each token receives, each layer's sink, and the residual stream's extremes",
            "n_tokens": self.context.n_tokens,
            **counted,
        }
        return described(data, coordinates, attrs)


def seen_by(facts: Mapping[str, Any], queries: int, keys: int) -> Tensor:
    """How many queries can see each key: `[1 or head, key]`, from the mask facts of an event without padding.

    Key j is seen by query i when 0 <= i + offset - j (causal) and i + offset - j < window; a dense mask replaces both.
    """
    if facts.get("mask") is not None:
        seen: Tensor = facts["mask"][0].sum(-2)
        return seen
    offset, window = facts.get("offset"), facts.get("window")
    own = torch.arange(keys) - (keys - queries if offset is None else offset)  # the query at the key's position
    first = own.clamp(0, queries) if facts.get("causal", True) or window is not None else torch.zeros_like(own)
    stop = torch.full_like(own, queries) if window is None else (own + window).clamp(0, queries)
    return (stop - first)[None]


def geometry(q: Tensor, k: Tensor, v: Tensor, sink: int) -> dict[str, Tensor]:
    """Key and value norms at the sink over their medians `[kv_head]`, and cosines of queries with keys `[head]`.

    A cosine is the mean over all queries of cos(q_t, k_j): the product of the mean unit query with the unit key.
    """
    unit = torch.nn.functional.normalize
    key_norm, value_norm = k.norm(dim=-1), v.norm(dim=-1)
    group = q.shape[0] // k.shape[0]
    cosine = unit(k, dim=-1).repeat_interleave(group, 0) @ unit(q, dim=-1).mean(1)[..., None]
    return {
        "sink_key_norm": key_norm[:, sink] / key_norm.median(-1).values,
        "sink_value_norm": value_norm[:, sink] / value_norm.median(-1).values,
        "sink_cosine": cosine[:, sink, 0],
        "median_cosine": cosine[..., 0].median(-1).values,
    }


def _runs(layers: list[int], names: list[str]) -> list[tuple[str, list[int]]]:
    """Layers in order, cut where the name changes: (name, layers)."""
    pairs = zip(layers, names, strict=True)
    return [(name, [layer for layer, _ in run]) for name, run in groupby(pairs, key=lambda pair: pair[1])]


# name: (dimensions after layer, dtype, units, description)
VARIABLES: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "column_mass": (("head", "token"), "float32", "queries", "attention received, summed over queries"),
    "mean_received": (
        ("head", "token"),
        "float32",
        "1",
        "attention received, mean over the queries that see the token; NaN where these are fewer than fewest_queries",
    ),
    "fewest_queries": (
        (),
        "int32",
        "queries",
        "max(64, N/8) for N tokens (N/8 if N < 64), or as many as see any token of this layer where these are fewer",
    ),
    "primary_sink": ((), "int32", "token", "position with the highest mean_received, averaged over heads"),
    "primary_sink_share": ((), "float32", "1", "mean_received of the primary sink, averaged over heads"),
    "alpha_first": (("head",), "float32", "1", "alpha_k: attention to position k, mean over the queries that see it"),
    "learned_sink_mass": (
        ("head",),
        "float32",
        "1",
        "attention that the learned sink logit absorbs, mean over queries; the pattern's rows sum to 1 minus this",
    ),
    "residual_max": ((), "float32", "1", "largest |x| of the block's output, over tokens and channels"),
    "residual_median": ((), "float32", "1", "median |x| of the block's output, over tokens and channels"),
    "psi": ((), "float32", "1", "Ψ: residual_max over residual_median"),
    "massive": ((), "int8", "1", "1 where residual_max exceeds 100 and 1,000 times the median"),
    "massive_position": ((), "int32", "token", "position of residual_max"),
    "massive_channel": ((), "int32", "channel", "channel of residual_max"),
    "sink_key_norm": (
        ("kv_head",),
        "float32",
        "1",
        "norm of the primary sink's key (after rotary) over the median norm",
    ),
    "sink_value_norm": (("kv_head",), "float32", "1", "norm of the primary sink's value over the median norm"),
    "sink_cosine": (("head",), "float32", "1", "mean over all queries of the cosine with the primary sink's key"),
    "median_cosine": (("head",), "float32", "1", "median over keys of the mean over all queries of the cosine"),
}
