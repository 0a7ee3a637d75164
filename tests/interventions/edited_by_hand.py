"""Attention edits written out: a hook on every layer's pattern, in one pass over the whole text without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from interp import InterpError
from tests.interventions.live_cache import close

Edit = Callable[[int, torch.Tensor], torch.Tensor]
"""From a layer and its pattern `[batch, head, query, key]`, over the whole text, to the new one."""


def by_hand(lens: Any, ids: torch.Tensor, edit: Edit, **kwargs: Any) -> torch.Tensor:
    """Logits with the pattern of every layer replaced by what `edit` makes of it."""

    def hook(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        assert pattern.shape[-1] == pattern.shape[-2] == ids.shape[1]
        return edit(int(hook.name.split(".")[1]), pattern)

    return lens.run_with_hooks(ids, fwd_hooks=[(lambda name: name.endswith("hook_pattern"), hook)], **kwargs)


def knocked_out(
    keys: Sequence[int],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    strength: float = 1.0,
    renormalise: bool = True,
    padding: Sequence[int] = (0, 0),
) -> Edit:
    """The pattern with some cells scaled, by loops over texts, heads and rows; padding: columns left of each text."""

    def edit(layer: int, pattern: torch.Tensor) -> torch.Tensor:
        new = pattern.clone()
        batch, count, length, _ = pattern.shape
        if layers is not None and layer not in layers:
            return new
        for b in range(batch):
            for h in range(count) if heads is None else heads:
                for i in range(padding[b], length) if queries is None else [padding[b] + i for i in queries]:
                    row = pattern[b, h, i].clone()
                    for key in keys:
                        row[padding[b] + key] = row[padding[b] + key] * (1 - strength)
                    if renormalise and row.sum() > 0:
                        row = row * (pattern[b, h, i].sum() / row.sum())
                    new[b, h, i] = row
        return new

    return edit


def in_pieces(lens: Any, ids: torch.Tensor, sizes: Sequence[int], mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of a text that is read in pieces with a cache."""
    logits, past, seen = [], {}, 0
    for size in sizes:
        part = ids[:, seen : seen + size]
        seen += size
        padding = {} if mask is None else {"attention_mask": mask[:, :seen]}
        logits.append(lens(part, use_cache=True, **past, **padding))
        past = {"past_key_values": lens.last_cache}
    assert seen == ids.shape[1]
    return torch.cat(logits, 1)


def one_sentence(error: BaseException) -> str:
    told = str(error)
    assert isinstance(error, InterpError)
    assert "\n" not in told
    assert told.endswith(".")
    return told


def check_observables(seen: Any, layer: int, pattern: torch.Tensor, real: torch.Tensor) -> None:
    """What a fused run shows of a layer, hook by hook, are sums over the edited pattern; padding's rows of it are 0.

    pattern: `[batch, head, query, key]`; real: which tokens are no padding, `[batch, token]`.
    """
    close(seen["column_mass", layer], pattern.sum(2))
    close(seen["row_entropy", layer], torch.special.entr(pattern).sum(-1))
    event = seen["event", layer]
    close(event.pattern(), pattern)
    close(event.square, pattern.square().sum(-1))
    x = torch.randn(*pattern.shape[:3], 3, generator=torch.Generator().manual_seed(0))
    close(event.apply(x), pattern @ x)
    close(event.transpose_apply(x), pattern.mT @ x)
    for found, by in zip(event.gram_apply(x), (pattern @ x, pattern.mT @ pattern @ x), strict=True):
        close(found, by)
    stored = seen["cached_v", layer].transpose(1, 2)
    values = stored.repeat_interleave(pattern.shape[1] // stored.shape[1], 1)
    close((pattern @ values).transpose(1, 2)[real], seen["z", layer][real])
