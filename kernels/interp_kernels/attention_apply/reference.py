"""attention_apply, with the attention matrix written out."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ..explicit import clear_padding, masked_scores, pattern, per_query_head
from ..facts import Facts


def attention_apply(
    q: Tensor, k: Tensor, v: Tensor | None, statistics: Collection[str], facts: Facts
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(z, lse, entropy, square, column mass) as documented in the package; what was not asked for is None."""
    scores = masked_scores(q, k, facts)
    lse = torch.logsumexp(scores, dim=-1)
    p = pattern(scores, lse, facts)
    z = None if v is None else p @ per_query_head(clear_padding(v, facts.key_mask), q.shape[1], p.dtype)
    entropy = torch.special.entr(p).sum(-1) if "entropy" in statistics else None
    square = p.square().sum(-1) if "square" in statistics else None
    column_mass = p.sum(-2) if "column_mass" in statistics else None
    return z, lse, entropy, square, column_mass
