"""Which tokens a summary stands for, as the policy wrote it down."""

from __future__ import annotations

import torch
from jaxtyping import Float

from interp.explaining.case import Case
from interp.explaining.summaries import Membership
from interp.interventions.base import Entry

Tensor = torch.Tensor


def memberships(case: Case) -> dict[int, Membership]:
    """Of every layer that has summaries when the policy's cache is put to rest, by stored head."""
    found = {}
    for entry in case.policy.ledger:
        if entry.summary is None or entry.share is None:
            continue
        heads = case.policy.rest.stored[entry.layer].segments[0].keys.shape[1]
        number, share = (
            _by_position(entry, x, int(case.prompt.shape[1]), absent).repeat_interleave(heads // x.shape[1], 0)
            for x, absent in ((entry.summary, -1), (entry.share, 0.0))
        )
        found[entry.layer] = Membership(number, share, int(number.max()) + 1)
    return found


def _by_position(entry: Entry, column: Tensor, tokens: int, absent: float) -> Float[Tensor, "head token"]:
    """A column of the ledger `[1, head, n]` by position in the text."""
    own = column[0].cpu()
    spread = torch.full((own.shape[0], tokens + 1), absent, dtype=own.dtype)  # the first for what is no token: -1
    return spread.scatter(1, entry.evicted[0].long().cpu() + 1, own)[:, 1:]
