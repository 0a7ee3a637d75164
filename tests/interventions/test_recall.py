"""Recall: summary tokens against what they stand for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import interp
from interp import InterpError
from interp.interventions._summaries import clusters, summarised
from interp.interventions.recall import Recall
from tests.models import shared, tokens

ROWS, EVICTED, D = 200, 12, 8


def drawn(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """(rows, keys, values) of two texts and three heads."""
    make = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, ROWS, D), (2, 3, EVICTED, D), (2, 3, EVICTED, 5))
    return tuple(torch.randn(shape, generator=make, dtype=torch.float64) for shape in shapes)


def fitted(rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: torch.Tensor, count: int, ridge: float):
    """Summaries where the rows' attention goes to the evicted tokens and to as much again elsewhere."""
    scores = rows @ keys.mT
    lse = scores.logsumexp(-1) + math.log(2)
    made = summarised(rows, scores - lse[..., None], lse, keys, values, group, count, ridge)
    return made, (scores - lse[..., None]).exp(), lse


@pytest.mark.parametrize("ridge", [1e-6, 1.0, 100.0])
def test_a_group_of_one_is_that_token(ridge: float) -> None:
    rows, keys, values = drawn()
    group = torch.arange(EVICTED).expand(2, 3, -1)
    made, _, _ = fitted(rows, keys, values, group, EVICTED, ridge)
    torch.testing.assert_close(made.keys, keys)
    torch.testing.assert_close(made.values, values)
    torch.testing.assert_close(made.bias, torch.zeros_like(made.bias), atol=1e-8, rtol=0)


@pytest.mark.parametrize("ridge", [1e-6, 1.0])
def test_equal_keys_are_one_key_that_weighs_as_many(ridge: float) -> None:
    rows, keys, values = drawn(1)
    keys = keys[:, :, :1].expand_as(keys)
    made, _, _ = fitted(rows, keys, values, torch.zeros(2, 3, EVICTED, dtype=torch.long), 1, ridge)
    torch.testing.assert_close(made.keys, keys[:, :, :1])
    torch.testing.assert_close(made.values[:, :, 0], values.mean(2))
    torch.testing.assert_close(made.bias, torch.full_like(made.bias, math.log(EVICTED)))


def test_attention_to_a_group_is_exact_in_sum_and_close_row_by_row() -> None:
    rows, keys, values = drawn(2)
    group = clusters(keys, 3)
    made, attention, lse = fitted(rows, keys, values, group, 3, 1e-3)
    given = (rows @ made.keys.mT + made.bias[:, :, None] - lse[..., None]).exp()
    wanted = torch.stack([(attention * (group == c)[:, :, None]).sum(-1) for c in range(3)], -1)
    torch.testing.assert_close(given.sum(2), wanted.sum(2))
    # against one mean key a group, which needs no queries
    member = torch.nn.functional.one_hot(group, 3).double()
    mean_key = member.mT @ keys / member.sum(2)[..., None]
    naive = (rows @ mean_key.mT - lse[..., None]).exp()
    naive = naive * (wanted.sum(2) / naive.sum(2))[:, :, None]
    assert (given - wanted).square().mean() < (naive - wanted).square().mean()


def test_clusters_find_what_is_far_apart() -> None:
    make = torch.Generator().manual_seed(3)
    centres = torch.randn(1, 1, 4, D, generator=make) * 50
    of = torch.arange(40) // 10
    keys = centres[:, :, of] + torch.randn(1, 1, 40, D, generator=make)
    found = clusters(keys, 4)[0, 0]
    assert all(len(found[of == c].unique()) == 1 for c in range(4))
    assert len(found.unique()) == 4


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
def test_the_budget_holds_and_padding_is_never_summarised(name: str) -> None:
    lens: Any = interp.load(shared(name))
    alone = tokens(1, 60)
    policy = Recall(budget=20, sinks=2)
    with lens.apply(policy):
        lens(alone, use_cache=True)
    cache = lens.last_cache
    for stored in cache.stored.values():
        old, summary, tail = stored.segments
        assert (len(old), len(summary), len(tail)) == (20 - 6 - 5, 6, 5)
        assert summary.log_count is not None
        assert bool(summary.log_count.isfinite().all())
        assert set(old.at()[0, 0].tolist()) >= {0, 1}
    padded = torch.cat([torch.full((1, 9), 2), alone], 1)
    mask = (torch.arange(69) >= 9)[None].long()
    with lens.apply(policy):
        lens(padded, attention_mask=mask, use_cache=True)
    nearly = [s.segments[0].at()[0].sort(-1).values - 9 for s in lens.last_cache.stored.values()]
    wanted = [s.segments[0].at()[0].sort(-1).values for s in cache.stored.values()]
    assert all(torch.equal(a, b) for a, b in zip(nearly, wanted, strict=True))


def test_a_capped_model_and_bad_settings_are_refused() -> None:
    with pytest.raises(InterpError, match="no room"):
        Recall(summaries=0.8)
    with pytest.raises(InterpError, match="above 0"):
        Recall(ridge=0.0)
    lens = interp.load(shared("llama"))
    with lens.apply(Recall(budget=5)), pytest.raises(InterpError, match="no room for 4 sinks"):
        lens.generate(tokens(1, 40), max_new_tokens=2)
    capped = interp.load(shared("gemma2"))
    with (
        pytest.warns(UserWarning, match="sliding window"),
        capped.apply(Recall(budget=0.5)),
        pytest.raises(InterpError, match="caps its attention logits"),
    ):
        capped.generate(tokens(1, 40), max_new_tokens=2)
