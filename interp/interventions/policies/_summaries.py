"""Summary tokens: one key, bias and value that stand for a whole group of tokens in the eyes of given queries.

A query q reads from a group of keys k_i the mass sum_i exp(s q k_i) = exp(y(q)), and the mean of their values weighted
by attention. One token can give the same mass if s q k + b is about y(q): that is a linear regression of y on q. Rows
are weighted by the attention they pay to the group, and the ridge pulls the key towards the group's mean key, weighted
by the attention received, so that with few or uninformative queries the summary is that mean.

Cost, for one head with E tokens of d channels, M groups and R rows: 10 E M d operations for the groups, 2 E R d for the
attention, 2 M R d² for the regressions. Memory: M R numbers for what each row pays to each group, as many numbers as
there are in the keys and values, and a few blocks of BLOCK numbers (or R d, if that is more); never E M or E R.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int

Tensor = torch.Tensor
ROUNDS = 5  # of Lloyd's algorithm; later ones move hardly a token
TINY = 1e-12
BLOCK = 2**19  # numbers in a block of a working tensor; larger ones are no faster


class Readers(NamedTuple):
    """Queries that read a stored head, from all query heads of its group."""

    rows: Float[Tensor, "*batch_head row d"]
    """Queries times the scale."""
    lse: Float[Tensor, "*batch_head row"]
    """Log-sum-exp of each row's scores over all tokens, evicted or not."""
    at: Int[Tensor, "*batch row"]
    """Position of each row: it sees tokens up to there. -1 for padding."""

    def head(self, batch: int, head: int) -> Readers:
        """The rows of one head without padding, unless there is nothing else."""
        real = self.at[batch] >= 0
        real = real | ~real.any()
        return Readers(self.rows[batch, head, real], self.lse[batch, head, real], self.at[batch, real])


class Summaries(NamedTuple):
    """Summary tokens of the groups of one head."""

    keys: Float[Tensor, "group d"]
    values: Float[Tensor, "group d_value"]
    bias: Float[Tensor, " group"]
    share: Float[Tensor, " E"]
    """How much of its group's value each token is."""


@torch.no_grad()
def clusters(keys: Float[Tensor, "E d"], count: int) -> Int[Tensor, " E"]:
    """Group of every key: k-means with `count` centres, which start at evenly spaced keys. Deterministic."""
    centres = keys[torch.arange(count, device=keys.device) * len(keys) // count]
    for _ in range(ROUNDS):
        half = centres.square().sum(-1) / 2
        nearest = torch.cat([(part @ centres.T - half).argmax(-1) for part in torch.split(keys, _fitting(count))])
        size = nearest.bincount(minlength=count)[:, None]
        centres = torch.where(size > 0, group_sums(keys, nearest, count) / size.clamp_min(1), centres)
    return nearest


def summarised(
    readers: Readers,
    keys: Float[Tensor, "E d"],
    values: Float[Tensor, "E d_value"],
    at: Int[Tensor, " E"],
    group: Int[Tensor, " E"],
    count: int,
    ridge: float,
) -> Summaries:
    """Fit one summary token to each of `count` groups of one head's tokens.

    at: position of each token, beyond every reader's where none sees it. The bias is shifted at the end so that the
    attention paid to the group, summed over the rows, is exact.
    """
    paid, received = _attention(readers, keys, at, group, count)
    of_group = group_sums(received[:, None], group, count).clamp_min(TINY)
    share = received[:, None] / of_group[group]
    mean_key, value = group_sums(share * keys, group, count), group_sums(share * values, group, count)
    fitted, bias = [], []
    for weight, towards in zip(
        *(torch.split(x, _fitting(readers.rows.numel())) for x in (paid, mean_key)), strict=True
    ):
        fitted.append(_regressions(readers.rows, weight, weight.log() + readers.lse, towards, ridge))
        given = (fitted[-1] @ readers.rows.T - readers.lse).exp().sum(-1)
        bias.append((weight.sum(-1) / given.clamp_min(TINY)).log())
    return Summaries(torch.cat(fitted), value, torch.cat(bias), share[:, 0])


def group_sums(x: Float[Tensor, "E n"], group: Int[Tensor, " E"], count: int) -> Float[Tensor, "group n"]:
    """Sum of the rows of each group."""
    size = group.bincount(minlength=count)
    # rather than index_add_, which on a GPU adds in another order each time
    return torch.nn.functional.embedding_bag(group.argsort(stable=True), x, size.cumsum(0) - size, mode="sum")


def _fitting(numbers: int) -> int:
    """How many rows of so many numbers a block has."""
    return max(1, BLOCK // numbers)


def _attention(readers: Readers, keys: Tensor, at: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(attention that each row pays to each group `[group, row]`, attention that each token receives `[E]`)."""
    paid, received = keys.new_zeros(count, len(readers.rows)), []
    for k, place, of in zip(*(torch.split(x, _fitting(len(readers.rows))) for x in (keys, at, group)), strict=True):
        unseen = place[:, None] > readers.at
        attention = (k @ readers.rows.T).sub_(readers.lse).masked_fill_(unseen, -torch.inf).exp_()
        paid += group_sums(attention, of, count)
        received.append(attention.sum(-1))
    return paid.clamp_min_(TINY), torch.cat(received)


def _regressions(
    rows: Float[Tensor, "row d"],
    weight: Float[Tensor, "group row"],
    y: Float[Tensor, "group row"],
    towards: Float[Tensor, "group d"],
    ridge: float,
) -> Float[Tensor, "group d"]:
    """The key k of each group's weighted regression y = rows k + b, pulled towards a given key."""
    weight = weight / weight.sum(-1, keepdim=True)
    # centred before it is squared: rows that read a group are often so alike that their mean drowns what differs
    centred = rows - (weight @ rows)[:, None]
    right = centred.mT @ (weight * (y - (weight * y).sum(-1, keepdim=True)))[..., None]
    gram = (weight[..., None] * centred).mT @ centred
    strength = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None].clamp_min(TINY)
    eye = strength * torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    solved: Tensor = torch.linalg.solve(gram + eye, right + strength * towards[..., None])
    return solved[..., 0]
