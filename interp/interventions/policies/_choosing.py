"""Which tokens of a layer stay, where each text of a batch may keep its own number of them.

A cache is as wide as its longest row. A text that keeps fewer tokens than another has places left: in those stand
tokens that nobody attends to, padding where the text has some, else tokens of its own at the position `NOWHERE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int

Tensor = torch.Tensor


class Choice(NamedTuple):
    """Places of tokens, in the order of their places."""

    kept: Int[Tensor, "batch head kept"]
    unused: Bool[Tensor, "batch head kept"] | None
    """Of these, places that a text does not use; None: none."""
    dropped: Int[Tensor, "batch head dropped"]
    spared: Bool[Tensor, "batch head dropped"] | None
    """Of these, tokens that were kept after all, since their text drops fewer than another; None: none."""
    recent: int
    """The newest tokens, which all texts keep and which are not among `kept`."""


def choose(
    scores: Float[Tensor, "batch head token"],
    at: Int[Tensor, "batch head token"],
    padding: Int[Tensor, " batch"] | None,
    sizes: Sequence[int],
    recent: Sequence[int],
    sinks: int,
) -> Choice:
    """Of each text as many tokens as `sizes` says: its newest `recent`, its first `sinks`, and the best of the others.

    Padding comes last whatever it scores, and of equals the later goes. `at` are the tokens' positions, of which the
    last max(recent) are the newest and rise.
    """
    total, tail = scores.shape[-1], min(recent)
    width = total - tail
    candidates, at = scores[..., :width].clone(), at[..., :width]
    place = torch.arange(width, device=scores.device)
    first = 0 if padding is None else padding[:, None, None]
    if max(recent) > tail:
        candidates.masked_fill_(place >= total - by_text(recent, scores), torch.inf)
    candidates.masked_fill_((at >= first) & (at < first + sinks), torch.inf)
    candidates.masked_fill_(at < first, -torch.inf)
    order = candidates.sort(dim=-1, descending=True, stable=True).indices
    counts = [min(size, total) - tail for size in sizes]
    most, fewest = max(counts), min(counts)
    if most == fewest:
        return Choice(order[..., :most].sort(-1).values, None, order[..., most:].sort(-1).values, None, tail)
    rank = order.argsort(-1)
    stays = rank < by_text(counts, scores)
    kept = torch.where(stays, place + width, rank).argsort(-1)[..., width - most :]  # the worst stand in what is left
    dropped = torch.where(stays, place - width, place).argsort(-1)[..., fewest:]
    return Choice(kept, ~stays.gather(-1, kept), dropped, stays.gather(-1, dropped), tail)


def by_text(numbers: Sequence[int], like: Tensor) -> Int[Tensor, "batch 1 1"]:
    """One number for each text, to go with `[batch, head, token]`."""
    return torch.tensor(list(numbers), device=like.device)[:, None, None]


def worth(
    scores: Float[Tensor, "batch head token"],
    at: Int[Tensor, "batch head token"],
    padding: Int[Tensor, " batch"] | None,
    sinks: int,
    unused: Int[Tensor, " batch"] | None,
) -> Float[Tensor, "batch head token"]:
    """Scores by which one token of each head goes, the least first: sinks are infinite, what is hidden goes first.

    unused: places of each text that it does not use: so many of the hidden tokens stay; None: none.
    """
    first = 0 if padding is None else padding[:, None, None]
    value = scores.masked_fill((at >= first) & (at < first + sinks), torch.inf)
    hidden = at < first
    if unused is None:
        return value.masked_fill(hidden, -torch.inf)
    spare = hidden.sum(-1, keepdim=True) > unused[:, None, None]
    return value.masked_fill(hidden & spare, -torch.inf).masked_fill(hidden & ~spare, torch.inf)


def least(
    value: Float[Tensor, "batch head token"], at: Int[Tensor, "batch head token"]
) -> tuple[Int[Tensor, "batch head"], Float[Tensor, "batch head"]]:
    """(place, value) of the smallest, of equals the one that stands latest in the text."""
    smallest = value.amin(-1)
    return at.masked_fill(value > smallest[..., None], -2).argmax(-1), smallest
