"""What a method itself thought of everything that it dropped: the score that attribution is compared with.

Only what the policy wrote down counts (`Plan.ledger`, `Plan.channel_ledger`). Nothing is computed anew in its place: a
number that the policy did not use would look like its own.
"""

from __future__ import annotations

import math

import torch

from interp.cache.segments import Part
from interp.errors import InterpError
from interp.explaining.case import NEVER, Case

Tensor = torch.Tensor
Place = tuple[int, int, int]
"""(layer, stored head, channel or position)."""
NOT_RECORDED = "not recorded"


def channel_scores(case: Case) -> dict[Place, float]:
    """What the policy ranked by, of every key channel that it dropped; NaN where it wrote down nothing."""
    return _of_dropped(case, "keys")


def value_channel_scores(case: Case) -> dict[Place, float]:
    """The same of value channels."""
    return _of_dropped(case, "values")


def token_scores(case: Case) -> dict[Place, float]:
    """What the policy ranked by, of every token that it evicted by the time its cache was put to rest; NaN where it
    wrote down nothing."""
    written = {
        (entry.layer, head, int(at)): float(score)
        for entry in case.policy.ledger
        if entry.score is not None
        for head, (places, values) in enumerate(zip(entry.evicted[0].cpu(), entry.score[0].cpu(), strict=True))
        for at, score in zip(places, values, strict=True)
    }
    scores = {}
    for layer, evicted_at in case.policy.evicted_at.items():
        gone = (evicted_at <= case.policy.fed) & (evicted_at != NEVER)
        for head, at in gone.nonzero().tolist():
            scores[layer, head, at] = written.get((layer, head, at), math.nan)
    return scores


def about_scores(case: Case, of: str, scores: dict[Place, float]) -> str:
    """What the numbers in `scores` of "channels", "value_channels" or "tokens" are, or `NOT_RECORDED`."""
    if all(math.isnan(score) for score in scores.values()):
        return NOT_RECORDED
    if of == "tokens":
        return "what the policy ranked tokens by when it evicted them"
    part = "keys" if of == "channels" else "values"
    return "; ".join(dict.fromkeys(entry.about for entry in case.policy.channel_ledger if entry.of == part))


def _of_dropped(case: Case, of: Part) -> dict[Place, float]:
    recorded = {entry.layer: entry.score[0].float().cpu() for entry in case.policy.channel_ledger if entry.of == of}
    scores: dict[Place, float] = {}
    for layer, own in case.policy.rest.stored.items():
        if (kept := own.kept_channels(of)) is None:
            continue
        dropped = ~kept
        score = recorded.get(layer, torch.full(dropped.shape, math.nan))
        if score.shape != dropped.shape:
            raise InterpError(
                f"the policy wrote down scores {list(score.shape)} for channels of {of} in layer {layer}, which has "
                f"{dropped.shape[0]} stored heads of {dropped.shape[1]}; it should write one a stored head and channel."
            )
        scores |= {(layer, h, c): float(score[h, c]) for h, c in dropped.nonzero().tolist()}
    return scores
