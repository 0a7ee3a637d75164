"""Summary tokens: what they are in plain cases, and that fitting them in blocks is the dense mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from interp.interventions.policies import _summaries
from interp.interventions.policies._summaries import BLOCK, Readers, clusters, summarised

ROWS, EVICTED, D = 200, 12, 8


def drawn(seed: int = 0, evicted: int = EVICTED) -> tuple[torch.Tensor, ...]:
    """(rows, keys, values) of one head."""
    make = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(n, d, generator=make, dtype=torch.float64) for n, d in ((ROWS, D), (evicted, D), (evicted, 5))
    )


def fitted(rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: torch.Tensor, count: int, ridge: float):
    """Summaries where the rows' attention goes to the evicted tokens and to as much again elsewhere."""
    scores = rows @ keys.T
    lse = scores.logsumexp(-1) + math.log(2)
    readers = Readers(rows, lse, torch.full((len(rows),), len(keys)))
    made = summarised(readers, keys, values, torch.arange(len(keys)), group, count, ridge)
    return made, (scores - lse[:, None]).exp(), lse


@pytest.mark.parametrize("ridge", [1e-6, 1.0, 100.0])
def test_a_group_of_one_is_that_token(ridge: float) -> None:
    rows, keys, values = drawn()
    made, _, _ = fitted(rows, keys, values, torch.arange(EVICTED), EVICTED, ridge)
    torch.testing.assert_close(made.keys, keys)
    torch.testing.assert_close(made.values, values)
    torch.testing.assert_close(made.bias, torch.zeros_like(made.bias), atol=1e-8, rtol=0)


@pytest.mark.parametrize("ridge", [1e-6, 1.0])
def test_equal_keys_are_one_key_that_weighs_as_many(ridge: float) -> None:
    rows, keys, values = drawn(1)
    keys = keys[:1].repeat(EVICTED, 1)
    made, _, _ = fitted(rows, keys, values, torch.zeros(EVICTED, dtype=torch.long), 1, ridge)
    torch.testing.assert_close(made.keys, keys[:1])
    torch.testing.assert_close(made.values[0], values.mean(0))
    torch.testing.assert_close(made.bias, torch.full_like(made.bias, math.log(EVICTED)))


def test_attention_to_a_group_is_exact_in_sum_and_close_row_by_row() -> None:
    rows, keys, values = drawn(2)
    group = clusters(keys, 3)
    made, attention, lse = fitted(rows, keys, values, group, 3, 1e-3)
    given = (rows @ made.keys.T + made.bias - lse[:, None]).exp()
    wanted = torch.stack([attention[:, group == c].sum(-1) for c in range(3)], -1)
    torch.testing.assert_close(given.sum(0), wanted.sum(0))
    # against one mean key a group, which needs no queries
    member = torch.nn.functional.one_hot(group, 3).double()
    mean_key = member.T @ keys / member.sum(0)[:, None]
    naive = (rows @ mean_key.T - lse[:, None]).exp()
    naive = naive * (wanted.sum(0) / naive.sum(0))
    assert (given - wanted).square().mean() < (naive - wanted).square().mean()


def test_clusters_find_what_is_far_apart() -> None:
    make = torch.Generator().manual_seed(3)
    centres = torch.randn(4, D, generator=make) * 50
    of = torch.arange(40) // 10
    found = clusters(centres[of] + torch.randn(40, D, generator=make), 4)
    assert all(len(found[of == c].unique()) == 1 for c in range(4))
    assert len(found.unique()) == 4


def dense_clusters(keys: torch.Tensor, count: int) -> torch.Tensor:
    """k-means with every distance and membership at once."""
    centres = keys[torch.arange(count) * len(keys) // count]
    for _ in range(5):
        nearest = (keys @ centres.T - centres.square().sum(-1) / 2).argmax(-1)
        member = torch.nn.functional.one_hot(nearest, count).to(keys.dtype)
        size = member.sum(0)[:, None]
        centres = torch.where(size > 0, member.T @ keys / size.clamp_min(1), centres)
    return nearest


def dense_summaries(
    readers: Readers,
    keys: torch.Tensor,
    values: torch.Tensor,
    at: torch.Tensor,
    group: torch.Tensor,
    count: int,
    ridge: float,
) -> tuple[torch.Tensor, ...]:
    """Summaries and each token's share of its own from the whole map of rows x evicted tokens, one regression after the
    other."""
    rows, lse, seen_from = readers
    attention = (rows @ keys.T - lse[:, None]).masked_fill(at > seen_from[:, None], -torch.inf).exp()
    member = torch.nn.functional.one_hot(group, count).to(keys.dtype)
    paid = (attention @ member).clamp_min(1e-12)
    received = member * attention.sum(0)[:, None]
    share = received / received.sum(0).clamp_min(1e-12)
    mean_key = share.T @ keys
    fitted = torch.stack(
        [dense_regression(rows, paid[:, c], paid[:, c].log() + lse, mean_key[c], ridge) for c in range(count)]
    )
    given = (rows @ fitted.T - lse[:, None]).exp().sum(0)
    return fitted, share.T @ values, (paid.sum(0) / given.clamp_min(1e-12)).log(), share.sum(1)


def dense_regression(
    rows: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, towards: torch.Tensor, ridge: float
) -> torch.Tensor:
    weight = weight / weight.sum()
    centred = rows - (weight[:, None] * rows).sum(0)
    right = weight * (y - (weight * y).sum())
    gram = (weight[:, None] * centred).T @ centred
    eye = ridge * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(rows.shape[-1], dtype=rows.dtype)
    return torch.linalg.solve(gram + eye, centred.T @ right + eye @ towards)


def read(dtype: torch.dtype) -> tuple[Readers, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(readers, keys, values, positions): rows stand among the tokens, some are padding, and so are some tokens."""
    rows, keys, values = (x.to(dtype) for x in drawn(4, evicted=150))
    at = torch.arange(150)
    seen_from = torch.arange(ROWS) % 100 + 60
    lse = (rows @ keys.T).masked_fill(at > seen_from[:, None], -torch.inf).logsumexp(-1) + 1
    seen_from[::9] = -1
    return Readers(rows, lse, seen_from), keys, values, at.masked_fill(at < 7, 10**6)


@pytest.mark.parametrize("block", [1, 3000, BLOCK])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("count", [1, 23, 150])
def test_blocks_change_nothing(
    block: int, dtype: torch.dtype, tolerance: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_summaries, "BLOCK", block)
    readers, keys, values, at = read(dtype)
    group = clusters(keys, count)
    assert torch.equal(group, dense_clusters(keys, count))
    made = summarised(readers, keys, values, at, group, count, 0.5)
    wanted = dense_summaries(readers, keys, values, at, group, count, 0.5)
    for found, exact in zip(made, wanted, strict=True):
        torch.testing.assert_close(found, exact, rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_the_dense_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_summaries, "BLOCK", 3000)
    readers, keys, values, at = read(torch.float64)
    group = clusters(keys, 9)
    through = [x.requires_grad_() for x in (readers.rows, keys, values)]

    def gradients(function: Callable[..., Sequence[torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        made = function(readers, keys, values, at, group, 9, 0.5)
        return torch.autograd.grad(torch.cat([part.flatten() for part in made]).square().sum(), through)

    found, wanted = gradients(summarised), gradients(dense_summaries)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
