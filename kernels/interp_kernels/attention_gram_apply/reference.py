"""attention_gram_apply, with the attention matrix written out."""

from __future__ import annotations

from torch import Tensor

from ..checks import accumulator
from ..explicit import clear_padding, masked_scores, pattern
from ..facts import Facts


def attention_gram_apply(q: Tensor, k: Tensor, lse: Tensor, x: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
    """(A @ x [B, H, N, R], A^T @ A @ x [B, H, S, R])."""
    p = pattern(masked_scores(q, k, facts), lse.to(accumulator(q)), facts)
    z = p @ clear_padding(x, facts.key_mask).to(p.dtype)
    return z, p.mT @ z
