"""ThinK by zeros: a plain transformers model with a plain DynamicCache, pruned channels overwritten by hand.

Nothing here is shared with the library but the queries of the prompt, which a hook hands over: scores come from the
outer products of the paper's definition, one channel at a time, and nothing is ever freed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

import interp
from tests.models import shared

ARCHITECTURES = ("llama", "qwen3", "gpt2", "gpt_neox", "phi", "gemma3", "gpt_oss", "gemma2")
"""Grouped and multi-head, rotated wholly, partly and not at all, QK-norm, sliding layers, learned sinks, softcap."""
LOCAL_LAYERS = {"gemma3": (0, 2), "gpt_oss": (0, 2), "gemma2": (0, 2)}
"""Sliding-window layers, which policies leave alone (tests/models.py)."""


def full_layers(name: str) -> list[int]:
    return [i for i in range(3) if i not in LOCAL_LAYERS.get(name, ())]


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)


@dataclass
class Plain:
    """A plain model that has read a prompt: `cache` is transformers' own, `q[layer] [batch, head, token, d_head]`."""

    model: Any
    mask: torch.Tensor
    cache: transformers.DynamicCache
    logits: torch.Tensor
    q: dict[int, torch.Tensor]

    @classmethod
    def reads(cls, model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Plain:
        lens = interp.load(model)
        mask = torch.ones_like(ids) if mask is None else mask
        q = "rot_q" if lens.cfg.positional_embedding_type == "rotary" else "q"
        _, seen = lens.run_with_cache(
            ids, attention_mask=mask, names_filter=lambda name: name.endswith(f"attn.hook_{q}"), return_type=None
        )
        cache = transformers.DynamicCache(config=model.config)
        out = model(ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache, use_cache=True)
        return cls(model, mask, cache, out.logits, {i: seen[q, i].transpose(1, 2) for i in range(lens.cfg.n_layers)})

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of new tokens `[batch, new]`, which the cache takes in as they are."""
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], 1)
        at = positions(self.mask)[:, -ids.shape[1] :]
        return self.model(
            ids, attention_mask=self.mask, position_ids=at, past_key_values=self.cache, use_cache=True
        ).logits

    def prune(
        self,
        layers: list[int],
        k: int,
        window: int,
        recent: int,
        sinks: int = 0,
        prunable_only: bool = False,
        mean: bool = False,
    ) -> dict[int, torch.Tensor]:
        """Overwrite pruned key channels with zeros; returns which `[batch, kv_head, d_head]`, True for pruned.

        With `mean`, with their mean over the tokens that lose them, and keys are judged by what differs from the mean.
        """
        pruned = {}
        for layer in layers:
            keys = self.cache.layers[layer].keys
            pruned[layer] = torch.zeros(*keys.shape[:2], keys.shape[-1], dtype=torch.bool)
            for b in range(keys.shape[0]):
                begin, end = int((self.mask[b] == 0).sum()), keys.shape[2]
                old = slice(begin + sinks, end - recent)
                if old.start >= old.stop:
                    continue
                for h in range(keys.shape[1]):
                    group = self.q[layer].shape[1] // keys.shape[1]
                    queries = self.q[layer][b, h * group : (h + 1) * group, max(begin, end - window) :].flatten(0, 1)
                    judged = keys[b, h, old if prunable_only else slice(begin, end)]
                    scores = channel_scores(queries, judged - judged.mean(0) if mean else judged)
                    gone = sorted(range(keys.shape[-1]), key=scores.__getitem__)[:k]
                    pruned[layer][b, h, gone] = True
                    for channel in gone:
                        keys[b, h, old, channel] = keys[b, h, old, channel].mean() if mean else 0.0
        return pruned


def channel_scores(queries: torch.Tensor, keys: torch.Tensor) -> list[float]:
    """‖Q[:, j] K[:, j]ᵀ‖_F of every channel j, from the outer products themselves; `[token, d]` each."""
    return [torch.outer(q, k).norm().item() for q, k in zip(queries.double().T, keys.double().T, strict=True)]


def plain(name: str, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Plain:
    return Plain.reads(shared(name), ids, mask)
