"""The attention matrix written out in full: what the references are made of, and the truth the blocked paths meet."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import accumulator
from .facts import Facts


def per_query_head(x: Tensor, heads: int, dtype: torch.dtype | None = None) -> Tensor:
    """x [B, Hk, ...] -> [B, heads, ...] in dtype, or x's own accumulation dtype; head h reads h // (heads // Hk)."""
    return x.to(dtype or accumulator(x)).repeat_interleave(heads // x.shape[1], dim=1)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(scores / softcap); scores themselves where softcap is None.

    scores are given away: they are written over, unless their gradient is recorded.
    """
    if softcap is None:
        return scores
    if scores.requires_grad:
        return softcap * torch.tanh(scores / softcap)
    return scores.div_(softcap).tanh_().mul_(softcap)


def masked_scores(q: Tensor, k: Tensor, facts: Facts) -> Tensor:
    """Scaled, soft-capped and biased scores [B, H, N, S], -inf where the key is hidden from the query."""
    wide = q.to(accumulator(q))
    scores = capped(facts.scale * wide @ per_query_head(k, q.shape[1], wide.dtype).mT, facts.softcap)
    if facts.bias is not None:
        scores = scores + facts.bias.to(scores.dtype)
    return scores.masked_fill(~facts.visible(), -torch.inf)


def log_denominator(lse: Tensor, facts: Facts) -> Tensor:
    """Log of what a row of exp(scores) is divided by, [B, H, N]: lse, and the sink logit where there is one."""
    if facts.sinks is None:
        return lse
    return torch.logaddexp(lse, facts.sinks.to(lse.dtype)[None, :, None])


def pattern(scores: Tensor, lse: Tensor, facts: Facts) -> Tensor:
    """A [B, H, N, S] from masked scores and their row lse [B, H, N]; a row whose lse is -inf is zero."""
    zero = (scores == -torch.inf) | (lse == -torch.inf)[..., None]
    return torch.exp(scores - log_denominator(lse, facts)[..., None]).masked_fill(zero, 0.0)


def clear_padding(x: Tensor, keep: Tensor | None) -> Tensor:
    """x [B, H, T, R] with zeros at the positions that keep [B, T] calls padding, whatever was there."""
    return x if keep is None else x.masked_fill(~keep[:, None, :, None], 0.0)
