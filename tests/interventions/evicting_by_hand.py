"""Token eviction by hand: transformers' own eager attention over a full cache, with evicted tokens masked in each head.

Nothing here comes from interp. Keys stay at their true positions, scores come from the materialised pattern, and what
to keep is decided by sorting plain lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers as hf

from tests.models import tiny

Tensor = torch.Tensor
Positions = list[list[list[int]]]
"""Positions by text and head."""


@cache
def eager(kind: str) -> hf.PreTrainedModel:
    model = tiny(kind)
    model.set_attn_implementation("eager")
    return model


class FullCache:
    """A plain eager run of `ids [batch, pos]` that goes on token by token, with tokens hidden from some heads."""

    def __init__(self, kind: str, ids: Tensor, mask: Tensor | None = None) -> None:
        self.model = eager(kind)
        config = self.model.config
        self.heads: int = config.num_attention_heads
        types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        self.layers = [i for i, kind in enumerate(types) if kind == "full_attention"]
        named = self.model.named_modules()
        self.attention = [m for name, m in named if name.endswith((".self_attn", ".attn", ".attention"))]
        self.mask = torch.ones_like(ids) if mask is None else mask
        self.first = (self.mask == 0).sum(1).tolist()
        self.cache = hf.DynamicCache(config=config)
        self.hidden: dict[int, Tensor] = {}
        self.logits, attentions = self._run(ids)
        real = self.mask.bool()[:, None, :, None]
        self.pattern = {i: attentions[i] * real for i in self.layers}
        self.keys = {i: self.cache.layers[i].keys.clone() for i in self.layers}
        self.hidden = {i: torch.zeros(self.keys[i].shape[:3], dtype=torch.bool) for i in self.layers}
        self.mass = {i: self._by_stored_head(self.pattern[i].sum(2), i) for i in self.layers}

    def _by_stored_head(self, x: Tensor, layer: int) -> Tensor:
        return x.unflatten(1, (self.keys[layer].shape[1], -1)).sum(2)

    @torch.no_grad()
    def _run(self, ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        positions = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out = self.model(
            ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache, use_cache=True,
            output_attentions=True,
        )  # fmt: skip
        return out.logits, out.attentions

    def feed(self, ids: Tensor) -> Tensor:
        """Logits of new tokens `[batch, new]`; each head sees what it has not lost."""
        new, seen = ids.shape[1], self.mask.shape[1]
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], 1)
        hooks = []
        for i in self.layers:
            self.hidden[i] = torch.nn.functional.pad(self.hidden[i], (0, new))
            hidden = self.hidden[i].repeat_interleave(self.heads // self.hidden[i].shape[1], 1)
            later = torch.arange(seen + new) > torch.arange(seen, seen + new)[:, None]
            unseen = hidden[:, :, None] | later | (self.mask == 0)[:, None, None]
            additive = torch.zeros(unseen.shape).masked_fill(unseen, -torch.inf)

            def hide(module: Any, args: Any, kwargs: dict, additive: Tensor = additive) -> tuple[Any, dict]:
                return args, kwargs | {"attention_mask": additive}

            hooks.append(self.attention[i].register_forward_pre_hook(hide, with_kwargs=True))
        try:
            logits, attentions = self._run(ids)
        finally:
            for hook in hooks:
                hook.remove()
        for i in self.layers:
            received = self._by_stored_head(attentions[i].sum(2), i)
            self.mass[i] = torch.nn.functional.pad(self.mass[i], (0, new)) + received
        return logits

    def hide_all_but(self, kept: dict[int, Positions]) -> None:
        for layer, by_text in kept.items():
            self.hidden[layer][:] = True
            for text, by_head in enumerate(by_text):
                for head, positions in enumerate(by_head):
                    self.hidden[layer][text, head, positions] = False

    def kept(self, layer: int) -> Positions:
        return [[(~head).nonzero().flatten().tolist() for head in text] for text in self.hidden[layer]]

    def evict_least_attended(self, capacity: int, recent: int, sinks: int, dense: int | None = None) -> None:
        """H2O after a step: back to `capacity` tokens; sinks, the newest `recent` and `dense` stored ones stay."""
        for layer in self.layers:
            seen = self.mask.shape[1]
            for text, by_head in enumerate(self.kept(layer)):
                start = self.first[text]
                for head, stored in enumerate(by_head):
                    mass = self.mass[layer][text, head].tolist()
                    safe = set(stored[len(stored) - (recent if dense is None else dense) :])
                    safe |= set(range(start, start + sinks)) | set(range(seen - recent, seen))
                    worst_first = sorted((p for p in stored if p not in safe), key=lambda p: (mass[p], -p))
                    self.hidden[layer][text, head, worst_first[: len(stored) - capacity]] = True

    def zero_channels(self, layer: int, pruned: Tensor, kept_dense: int, front: Positions | None = None) -> None:
        """Zeros in channels `pruned [batch, head, k]` of all stored tokens but the newest `kept_dense` and `front`."""
        keys = self.cache.layers[layer].keys
        for text, by_head in enumerate(self.kept(layer)):
            for head, stored in enumerate(by_head):
                whole = set() if front is None else set(front[text][head])
                for position in stored[: len(stored) - kept_dense]:
                    if position not in whole:
                        keys[text, head, position, pruned[text, head]] = 0


def best(scores: Sequence[float], capacity: int, recent: int, sinks: int, first: int = 0) -> list[int]:
    """Positions kept out of all scored: the newest `recent`, then sinks, then by score; the earlier of equals. Padding,
    before `first`, comes last whatever its score."""
    text = range(first, max(first, len(scores) - recent))
    order = sorted(text, key=lambda p: (p >= first + sinks, -scores[p], p)) + list(
        range(min(first, len(scores) - recent))
    )
    return sorted([*order[: capacity - recent], *range(len(scores) - recent, len(scores))])


def smoothed(scores: Sequence[float], kernel: int, pool: str) -> list[float]:
    """Each score replaced by the largest, or the mean (zeros beyond the ends), of its `kernel` neighbours."""
    half, out = kernel // 2, []
    for i in range(len(scores)):
        near = scores[max(0, i - half) : i + half + 1]
        out.append(max(near) if pool == "max" else sum(near) / kernel)
    return out


def received(full: FullCache, layer: int, last: int | None = None) -> Tensor:
    """Attention that each token of the prompt gets from the `last` queries, summed over the group's heads."""
    pattern = full.pattern[layer].double()
    rows = pattern if last is None else pattern[:, :, pattern.shape[2] - last :]
    heads = full.keys[layer].shape[1]
    return torch.stack([part.sum((1, 2)) for part in rows.chunk(heads, 1)], 1)
