"""attention_transpose_apply, with the attention matrix written out."""

from __future__ import annotations

from torch import Tensor

from ..checks import accumulator
from ..explicit import clear_padding, masked_scores, pattern
from ..facts import Facts


def attention_transpose_apply(q: Tensor, k: Tensor, lse: Tensor, y: Tensor | None, facts: Facts) -> Tensor:
    """A^T @ y, [B, H, S, R]; with y None the column sums of A, [B, H, S, 1]."""
    p = pattern(masked_scores(q, k, facts), lse.to(accumulator(q)), facts)
    if y is None:
        return p.sum(dim=2)[..., None]
    return p.mT @ clear_padding(y, facts.query_mask).to(p.dtype)
