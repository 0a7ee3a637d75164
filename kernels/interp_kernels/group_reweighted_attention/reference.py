"""group_reweighted_attention, with the attention matrix written out and scaled."""

from __future__ import annotations

import torch
from torch import Tensor

from ..explicit import clear_padding, masked_scores, pattern, per_query_head
from ..facts import Facts
from .edit import Edit


def group_reweighted_attention(
    q: Tensor, k: Tensor, v: Tensor, edit: Edit, facts: Facts
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, lse, masses) as documented in the package."""
    q, k, v = clear_padding(q, facts.query_mask), clear_padding(k, facts.key_mask), clear_padding(v, facts.key_mask)
    scores = masked_scores(q, k, facts)
    lse = torch.logsumexp(scores, dim=-1)
    a = pattern(scores, lse, facts)
    members = edit.members(a.dtype)
    masses = a @ members.mT
    factors = torch.where(masses > 0, edit.factors(masses), 0.0)
    edited = a * (factors @ members)
    if edit.renormalise:
        left = edited.sum(-1, keepdim=True)
        nothing = left == 0
        edited = edited * torch.where(nothing, 0.0, a.sum(-1, keepdim=True) / torch.where(nothing, 1.0, left))
    return edited @ per_query_head(v, q.shape[1], a.dtype), lse, masses
