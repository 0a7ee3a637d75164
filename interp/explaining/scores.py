"""What a method itself thought of everything that it dropped: the score that attribution is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.cache.segments import Segment
from interp.explaining.case import NEVER, Case
from interp.explaining.restoring import Part, at_positions, stored_channels
from interp.explaining.summaries import of_the_text
from interp.interventions.base import parts
from interp.interventions.policies._window import last_queries, window_read
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor
Place = tuple[int, int, int]
"""(layer, stored head, channel or position)."""


@torch.no_grad()
def channel_scores(case: Case) -> dict[Place, float]:
    """ThinK's score, mean q² * mean k², of every key channel that was dropped; without queries for `key_norm`.

    Queries are the last `window` of the prompt (all of them where it is None), over the heads that share the stored
    head; keys are those that lost channels or, with `score_tokens="all"`, all of the prompt that are held, as the full
    cache has them (so without summaries).
    """
    if not any(_pruned(case, "keys")):
        return {}
    policy = _channel_policy(case)
    selector = getattr(policy, "selector", "think")
    every = getattr(policy, "score_tokens", "all") == "all"
    energy = _from_last_queries(case, lambda event, window: last_queries(event, window)[0][0].float().square().mean(1))
    scores: dict[Place, float] = {}
    for layer, packed in _pruned(case, "keys"):
        judged = case.policy.rest.stored[layer].segments if every else packed
        keys, counts = _true(case.full.events[layer].k, judged)
        if getattr(policy, "fill", "zero") == "mean":  # the mean stays, and only what differs from it is lost
            keys = (keys - (keys * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True)) * counts
        score = keys.square().sum(1) / counts.sum(1)  # [stored head, channel]
        if selector != "key_norm":
            score = score * energy[layer].unflatten(0, (score.shape[0], -1)).mean(1).to(score.device)
        if selector == "random":
            score = torch.full_like(score, torch.nan)
        scores |= _of_dropped(layer, packed, "keys", score)
    return scores


@torch.no_grad()
def value_channel_scores(case: Case) -> dict[Place, float]:
    """ThinK's `value_score` of every value channel that was dropped.

    That is its mean square, or the square of what the last `window` queries read from it, times that of W_O's row.
    """
    if not any(_pruned(case, "values")):
        return {}
    policy = _channel_policy(case)
    kind = getattr(policy, "value_score", "attn_wo")
    read = {}
    if kind != "magnitude":
        read = _from_last_queries(case, lambda event, window: window_read(event, window)[0].float().square().sum(1))
    scores: dict[Place, float] = {}
    for layer, packed in _pruned(case, "values"):
        if kind == "magnitude":
            values, counts = _true(case.full.events[layer].v, case.policy.rest.stored[layer].segments)
            score = values.square().sum(1) / counts.sum(1)
        else:
            score = read[layer]
            if kind == "attn_wo":
                score = score * case.lens.output_norms(layer).to(score).square()
            score = score.unflatten(0, (packed[0].values.shape[1], -1)).sum(1)
        scores |= _of_dropped(layer, packed, "values", score)
    return scores


def _channel_policy(case: Case) -> Any:
    return next(member for member in parts(case.intervention) if getattr(member, "stage", None) == "channels")


def _pruned(case: Case, of: Part) -> list[tuple[int, list[Segment]]]:
    """(layer, its segments that lack channels) where there are some."""
    stored = case.policy.rest.stored
    packed = {i: [s for s in own.segments if stored_channels(s, of) is not None] for i, own in stored.items()}
    return [(i, segments) for i, segments in packed.items() if segments]


def _true(full: Tensor, segments: list[Segment]) -> tuple[Float[Tensor, "head token d"], Float[Tensor, "head token 1"]]:
    """(the full cache's keys or values of what segments hold, 1 for each token of the text); zeros for summaries."""
    true = torch.cat([at_positions(full, s) for s in segments], 2)[0].float()
    counts = [of_the_text(s)[0].expand(true.shape[0], -1) for s in segments]
    count = torch.cat(counts, 1).float()[..., None]
    return true * count, count


def _of_dropped(layer: int, packed: list[Segment], of: Part, score: Float[Tensor, "head d"]) -> dict[Place, float]:
    index = stored_channels(packed[0], of)
    assert index is not None
    kept = torch.zeros(score.shape, dtype=torch.bool).scatter(-1, index[0].long().cpu(), True)
    return {(layer, h, c): float(score[h, c]) for h, c in (~kept).nonzero().tolist()}


def _from_last_queries(case: Case, look: Callable[[AttentionEvent, int], Tensor]) -> dict[int, Tensor]:
    """What `look(event, window)` says of the prompt's attention in each layer, for the policy's `window`."""
    window = getattr(_channel_policy(case), "window", 32) or int(case.prompt.shape[1])
    seen: dict[int, Tensor] = {}

    def hook(event: AttentionEvent, hook: Any) -> None:
        seen[event.layer] = look(event, window)

    hooks = [(f"blocks.{i}.attn.hook_event", hook) for i in case.policy.rest.stored]
    case.lens.run_with_hooks(case.prompt, return_type=None, fwd_hooks=hooks, **case.lens.last_logits_only)
    return seen


def token_scores(case: Case) -> dict[Place, float]:
    """What the policy ranked by, of every token that it evicted by the time its cache was put to rest."""
    written = {
        (entry.layer, head, int(at)): float(score)
        for entry in case.policy.ledger
        for head, (places, values) in enumerate(zip(entry.evicted[0].cpu(), entry.score[0].cpu(), strict=True))
        for at, score in zip(places, values, strict=True)
    }
    scores = {}
    for layer, evicted_at in case.policy.evicted_at.items():
        gone = (evicted_at <= case.policy.fed) & (evicted_at != NEVER)
        for head, at in gone.nonzero().tolist():
            scores[layer, head, at] = written.get((layer, head, at), np.nan)
    return scores
