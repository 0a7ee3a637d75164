"""Summary tokens: one key, bias and value that stand for a whole group of tokens in the eyes of given queries.

A query q reads from a group of keys k_i the mass sum_i exp(s q k_i) = exp(y(q)), and the mean of their values weighted
by attention. One token can give the same mass if s q k + b is about y(q): that is a linear regression of y on q. Rows
are weighted by the attention they pay to the group, and the ridge pulls the key towards the group's mean key, weighted
by the attention received, so that with few or uninformative queries the summary is that mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int

Tensor = torch.Tensor
ROUNDS = 5  # of Lloyd's algorithm; later ones move hardly a token
TINY = 1e-12


class Summaries(NamedTuple):
    """Summary tokens of `group` groups."""

    keys: Float[Tensor, "batch head group d"]
    values: Float[Tensor, "batch head group d_value"]
    bias: Float[Tensor, "batch head group"]


def clusters(keys: Float[Tensor, "batch head E d"], count: int) -> Int[Tensor, "batch head E"]:
    """Group of every key: k-means with `count` centres, which start at evenly spaced keys. Deterministic."""
    centres = keys[:, :, torch.arange(count, device=keys.device) * keys.shape[2] // count]
    for _ in range(ROUNDS):
        nearest = (keys @ centres.mT - centres.square().sum(-1)[:, :, None] / 2).argmax(-1)
        member = torch.nn.functional.one_hot(nearest, count).to(keys.dtype)
        size = member.sum(2)[..., None]
        centres = torch.where(size > 0, member.mT @ keys / size.clamp_min(1), centres)
    return nearest


def summarised(
    rows: Float[Tensor, "batch head row d"],
    log_attention: Float[Tensor, "batch head row E"],
    lse: Float[Tensor, "batch head row"],
    keys: Float[Tensor, "batch head E d"],
    values: Float[Tensor, "batch head E d_value"],
    group: Int[Tensor, "batch head E"],
    count: int,
    ridge: float,
) -> Summaries:
    """Fit one summary token to each of `count` groups.

    rows: queries times the scale, every query of every head that reads the stored head. log_attention: logarithm of the
    attention that each row pays to each token, -inf where it cannot see it. lse: of each row's scores over all tokens.
    The bias is shifted at the end so that the attention paid to the group, summed over the rows, is exact.
    """
    attention = log_attention.exp()
    member = torch.nn.functional.one_hot(group, count).to(keys.dtype)
    paid = (attention @ member).clamp_min(TINY)  # [batch, head, row, group]
    received = member * attention.sum(2)[..., None]  # [batch, head, E, group]
    share = received / received.sum(2, keepdim=True).clamp_min(TINY)
    mean_key, value = share.mT @ keys, share.mT @ values
    fitted = torch.stack(
        [_regression(rows, paid[..., c], paid[..., c].log() + lse, mean_key[:, :, c], ridge) for c in range(count)], 2
    )
    total = paid.sum(2)
    given = (rows @ fitted.mT - lse[..., None]).exp().sum(2)
    return Summaries(fitted, value, (total / given.clamp_min(TINY)).log())


def _regression(rows: Tensor, weight: Tensor, y: Tensor, towards: Tensor, ridge: float) -> Tensor:
    """The key k `[batch, head, d]` of the weighted regression y = rows k + b, pulled towards a given key."""
    weight = weight / weight.sum(-1, keepdim=True)
    centred = rows - (weight[..., None] * rows).sum(2, keepdim=True)
    right = (weight * (y - (weight * y).sum(-1, keepdim=True)))[..., None]
    gram = (weight[..., None] * centred).mT @ centred
    strength = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(TINY)
    eye = strength * torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    return torch.linalg.solve(gram + eye, centred.mT @ right + eye @ towards[..., None])[..., 0]
