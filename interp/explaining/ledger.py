"""The merge ledger: every token that was evicted, from where, when, and what became of it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from interp.explaining.base import Question
from interp.explaining.case import Case
from interp.interventions.base import Entry
from interp.results.described import described
from interp.results.naming import quoted

KINDS = ("word", "part of a word", "number", "punctuation", "white space", "other")


@dataclass(frozen=True)
class Ledger(Question):
    """What was evicted: one row an eviction, and the rate of merging over steps.

    Rows come in the order in which they happened: step, layer, stored head. A step here is the number of tokens seen,
    as the policy counts. Only rows of policies that merge have a target.

    Examples:
        >>> why = interp.explain(lens, interp.H2OPrefill(budget=0.5), prompt, "w9 w10 w11", ["ledger"])
        >>> why["ledger"].evicted_position.sizes["eviction"]  # 20 of 40 tokens in 2 heads of 3 layers
        120
    """

    name: ClassVar[str] = "ledger"
    stages: ClassVar[tuple[str, ...]] = ("tokens",)

    def ask(self, case: Case) -> xr.Dataset:
        text = np.array(case.token_text, dtype=object)
        columns = _rows(case.policy.ledger)
        evicted, target = columns["evicted_position"], columns["target_position"]
        kinds = np.array([kind_of(t) for t in text[: case.prompt.shape[1] + case.steps]], dtype=object)
        columns["evicted_text"] = text[evicted]
        columns["target_text"] = np.where(target < 0, "", text[np.maximum(target, 0)])
        columns["evicted_kind"] = kinds[evicted]
        data: dict[str, Any] = {
            name: (("eviction",), columns[name], units, about) for name, (units, about) in COLUMNS.items()
        }
        seen, place = np.unique(columns["step"], return_inverse=True)
        evictions = np.bincount(place, minlength=len(seen))
        merges = np.bincount(place, weights=columns["merged"], minlength=len(seen)).astype(np.int64)
        data |= {
            "evictions": (("seen",), evictions, "tokens", "evictions at a step, all layers and heads"),
            "merges": (("seen",), merges, "tokens", "evicted tokens that were merged into another"),
            "merge_rate": (("seen",), merges / np.maximum(evictions, 1), "1", "merges over evictions"),
            "kind_share": (("kind",), _shares(kinds), "1", "share of all tokens read that are of a kind"),
            "kind_evicted": (("kind",), _shares(columns["evicted_kind"]), "1", "share of evictions of a kind"),
        }
        data["layer_evicted"] = (
            ("policy_layer", "token"),
            _share_of_heads(case, columns),
            "1",
            "share of a layer's stored heads that evicted the token",
        )
        coords = {
            "seen": seen,
            "kind": list(KINDS),
            "policy_layer": list(case.layers),
            "token": np.arange(case.seen.shape[1]),
            "token_text": ("token", text[: case.seen.shape[1]]),
        }
        attrs = {
            "title": "What was evicted and where it went",
            "description": "Every eviction of a token policy, by step, layer and stored head, with its merge target",
        }
        return described(data, coords, attrs)

    def findings(self, result: xr.Dataset) -> list[str]:
        n = result.sizes["eviction"]
        if n == 0:
            return ["Nothing was evicted."]
        share = result["layer_evicted"].values
        mean = share.mean(0)
        always = np.flatnonzero((share == 1).all(0))
        said = [
            f"{n:,} evictions in {result.sizes['policy_layer']} layers; a head gave up {mean.mean():.0%} of the tokens "
            f"on average, and {len(always)} of {result.sizes['token']:,} tokens went from every head of every layer."
        ]
        merged = int(result["merged"].sum())
        if merged:
            alike = result["similarity"].values[result["merged"].values == 1].mean()
            said.append(
                f"{merged / n:.1%} of them were merged into another token, at a mean similarity of {alike:.2f}."
            )
        ratio = result["kind_evicted"].values / np.maximum(result["kind_share"].values, 1e-9)
        common = result["kind_share"].values >= 0.02
        if common.sum() > 1:
            order = [i for i in np.argsort(ratio) if common[i]]
            most, least = str(result["kind"].values[order[-1]]), str(result["kind"].values[order[0]])
            said.append(
                f"Against their share of the text, tokens of the kind “{most}” were evicted {ratio[order[-1]]:.2f} "
                f"times as often, those of the kind “{least}” {ratio[order[0]]:.2f} times."
            )
        if merged:
            targets, counts = np.unique(
                result["target_position"].values[result["merged"].values == 1], return_counts=True
            )
            top = int(targets[counts.argmax()])
            said.append(
                f"The most frequent target is position {top} {quoted(str(result['token_text'].values[top]))}, "
                f"which received {int(counts.max()):,} merges."
            )
        return said


COLUMNS = {
    "step": ("tokens", "tokens seen when it happened"),
    "layer": ("layer", "layer"),
    "head": ("head", "stored head (key/value head, or query head where the policy keeps one set for each)"),
    "evicted_position": ("token", "position of the evicted token"),
    "evicted_text": ("text", "its text"),
    "evicted_kind": ("kind", "what kind of token it is"),
    "score": ("1", "what the policy ranked it by; NaN where it wrote down none"),
    "target_position": ("token", "position of the most similar retained token; -1 where the policy looks for none"),
    "target_text": ("text", "its text"),
    "similarity": ("1", "similarity of the two; NaN where the policy looks for none"),
    "threshold": ("1", "what the similarity had to reach; NaN where the policy has none"),
    "merged": ("1", "1 where the token was merged into its target"),
}


def _rows(ledger: list[Entry]) -> dict[str, np.ndarray]:
    """The ledger of one sequence as columns, a row for each real token that was evicted."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS if not name.endswith(("text", "kind"))}
    order = sorted(range(len(ledger)), key=lambda i: (ledger[i].step, ledger[i].layer))
    for entry in (ledger[i] for i in order):
        at = entry.evicted[0].cpu()
        real = at >= 0
        head = torch.arange(at.shape[0])[:, None].expand(at.shape)
        found = {
            "step": torch.full_like(at, entry.step),
            "layer": torch.full_like(at, entry.layer),
            "head": head,
            "evicted_position": at,
            "score": _or(entry.score, at, torch.nan),
            "target_position": _or(entry.target, at, -1),
            "similarity": _or(entry.similarity, at, torch.nan),
            "threshold": _or(entry.threshold, at, torch.nan),
            "merged": _or(entry.merged, at, 0),
        }
        for name, column in found.items():
            parts[name].append(column[real].numpy())
    dtype = dict.fromkeys(("score", "similarity", "threshold"), "float32") | {"merged": "int8"}
    return {
        name: (np.concatenate(held) if held else np.zeros(0)).astype(dtype.get(name, "int64"))
        for name, held in parts.items()
    }


def _or(column: torch.Tensor | None, like: torch.Tensor, absent: float) -> torch.Tensor:
    """A ledger column of the one sequence `[1]`, `[1, head]` or `[1, head, n]` as `[head, n]`, or `absent` instead."""
    if column is None:
        return torch.full(like.shape, absent)
    own = column[0].cpu()
    return own.view(*own.shape, *[1] * (2 - own.ndim)).expand(like.shape)


def _share_of_heads(case: Case, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Share of each layer's stored heads that evicted each token: `[layer, token]`."""
    gone = np.zeros((len(case.layers), case.seen.shape[1]), "float32")
    row = {layer: i for i, layer in enumerate(case.layers)}
    at = np.array([row[layer] for layer in columns["layer"]], dtype=np.int64)
    np.add.at(gone, (at, columns["evicted_position"]), 1.0)
    heads = np.array([case.policy.evicted_at[i].shape[0] for i in case.layers])
    share: np.ndarray = gone / heads[:, None]
    return share


def kind_of(text: str) -> str:
    """What kind of token a text is, one of `KINDS`; a word begins with a space or a capital letter."""
    bare = text.strip()
    if not bare:
        return "white space" if text else "other"
    if any(c.isdigit() for c in bare):
        return "number"
    if any(c.isalpha() for c in bare):
        return "word" if text[0].isspace() or bare[0].isupper() else "part of a word"
    return "punctuation" if all(unicodedata.category(c)[0] in "PS" for c in bare) else "other"


def _shares(kinds: np.ndarray) -> np.ndarray:
    return np.array([np.mean(kinds == kind) if len(kinds) else 0.0 for kind in KINDS])
