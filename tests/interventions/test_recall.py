"""Recall: summary tokens against what they stand for."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import interp
from interp import InterpError
from interp.cache.lens_cache import LensCache
from interp.interventions.keeper import Keeper
from interp.interventions.policies._summaries import BLOCK, Readers
from interp.interventions.policies.recall import Recall, RecallPlan
from interp.seam.event import AttentionEvent
from tests.interventions.largest import Largest
from tests.interventions.test_summaries import dense_clusters, dense_summaries
from tests.models import shared, tokens

REFUSES = {"gemma2": "caps its attention logits"}


def applied(policy: Recall, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padded: int = 0) -> tuple[Any, Any]:
    """(stored layer, plan) after the policy saw one layer's queries, keys and values; `padded` columns of text 0 are
    padding."""
    lens = interp.load(shared("llama"))
    tokens = q.shape[2]
    keeper = Keeper((policy,), lens.cfg, (0,), lens.output_norms)
    cache = LensCache(lens.model.config, keeper)
    keeper.expect(tokens)
    cache.update(k, v, 0)
    facts: dict[str, Any] = {"causal": True, "offset": 0}
    if padded:
        real = torch.ones(len(q), tokens, dtype=torch.bool)
        real[0, :padded] = False
        facts |= {"key_mask": real, "query_mask": real}
    event = AttentionEvent(0, q, k, v, q.shape[-1] ** -0.5, facts=facts)
    keeper.attended(0, cache.stored, q, lambda: event)
    return cache.stored[0], keeper.plans["tokens"]


def layer(batch: int, heads: int, kv_heads: int, tokens: int, d: int) -> tuple[torch.Tensor, ...]:
    make = torch.Generator().manual_seed(5)
    return tuple(torch.randn(batch, h, tokens, d, generator=make) for h in (heads, kv_heads, kv_heads))


@pytest.mark.parametrize("padded", [0, 9, 60])
@torch.no_grad()
def test_a_layer_is_what_the_dense_mathematics_makes_of_it(padded: int) -> None:
    """Up to 1,024 tokens the readers are all queries of a text's last quarter, whatever padding stands before it."""
    q, k, v = layer(2, 6, 2, 100, 8)
    stored, _ = applied(Recall(budget=30, sinks=2), q, k, v, padded)
    old, summary, tail = stored.segments
    assert (len(old), len(summary), len(tail)) == (30 - 7 - 9, 9, 7)
    place = torch.arange(100)
    for b, h in product(range(2), range(2)):
        first = padded if b == 0 else 0
        lost = torch.tensor(sorted(set(range(93)) - set(old.at()[b, h].tolist())))
        at = torch.where(lost < first, 10**6, lost)
        reading = place[100 - (100 - first) // 4 :]
        rows = q[b, 3 * h : 3 * h + 3, reading] * 8**-0.5
        hidden = (place > reading[:, None]) | (place < first)
        lse = (rows @ k[b, h].T).masked_fill(hidden, -torch.inf).logsumexp(-1)
        readers = Readers(rows.flatten(0, 1), lse.flatten(), reading.repeat(3))
        some = lost >= first
        lost, at = lost[some], at[some]
        group = dense_clusters(k[b, h, lost], 9)
        *wanted, _ = dense_summaries(readers, k[b, h, lost], v[b, h, lost], at, group, 9, 1.0)
        for c in range(9):
            of = lost[(group == c) & (lost >= first)]
            assert summary.at()[b, h, c] == (int(of.float().mean()) if len(of) else 0)
            for found, exact in zip((summary.keys, summary.values, summary.log_count), wanted, strict=True):
                torch.testing.assert_close(found[b, h, c], exact[c], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_text_of_padding_alone_disturbs_no_other() -> None:
    q, k, v = layer(2, 6, 2, 40, 8)
    both, _ = applied(Recall(budget=20), q, k, v, padded=40)
    alone, _ = applied(Recall(budget=20), q[1:], k[1:], v[1:])
    for found, wanted in zip(both.segments, alone.segments, strict=True):
        torch.testing.assert_close(found.keys[1:], wanted.keys)
        torch.testing.assert_close(found.values[1:], wanted.values)


@pytest.mark.parametrize(("tokens", "share"), [(1, 0.25), (40, 0.25), (1024, 0.25), (1030, 0.25), (5000, 0.7)])
def test_readers_are_bounded_and_evenly_spaced(tokens: int, share: float) -> None:
    q, k, v = layer(1, 2, 1, tokens, 2)
    plan: Any = RecallPlan(Recall(queries=share), None)  # type: ignore[arg-type]
    plan.observe(0, AttentionEvent(0, q, k, v, 1.0, facts={"causal": True, "offset": 0}))
    rows, lse, at = plan.readers[0]
    span = max(1, int(tokens * share))
    count = min(span, 256)
    assert rows.shape == (1, 1, 2 * count, 2)
    assert lse.shape == (1, 1, 2 * count)
    of_head = at[0, :count]
    assert torch.equal(at[0, count:], of_head)
    torch.testing.assert_close(rows[0, 0, count:], q[0, 1, of_head])
    assert of_head[-1] == tokens - 1
    assert of_head[0] >= tokens - span
    gaps = of_head.diff()
    assert set(gaps.tolist()) <= {span // count, -(-span // count)}


def test_readers_are_freed_where_nothing_is_dropped() -> None:
    for budget in (0.5, 1.0):
        stored, plan = applied(Recall(budget=budget), *layer(1, 2, 1, 40, 4))
        assert stored.kept == int(40 * budget)
        assert plan.readers == {}


@pytest.mark.parametrize(("tokens", "budget"), [(2048, 0.2), (4096, 0.6)])
@torch.no_grad()
def test_nothing_larger_than_a_block_is_ever_held(tokens: int, budget: float) -> None:
    """Neither queries x evicted tokens, nor queries x channels x summaries, nor evicted tokens x summaries: a block is
    an eighth of one head's map at 2,048 tokens, and does not grow with the prompt."""
    q, k, v = layer(1, 4, 2, tokens, 32)
    assert q.numel() <= BLOCK == 2048**2 / 8
    with Largest() as largest:
        applied(Recall(budget=budget), q, k, v)
    assert k.numel() <= largest.elements <= BLOCK


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


def test_a_padded_text_is_summarised_as_it_is_alone() -> None:
    """Whatever stands in the padding; with as many readers, which are a share of all columns."""
    lens: Any = interp.load(shared("llama"))
    alone, policy = tokens(1, 60), Recall(budget=20)
    other = torch.cat([tokens(1, 3, seed=9), tokens(1, 60, seed=8)], 1)
    ids = torch.cat([other, torch.cat([torch.full((1, 3), 2), alone], 1)])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad(), lens.apply(policy):
        lens(alone, use_cache=True)
        wanted = lens.last_cache.stored
        lens(ids, attention_mask=mask, use_cache=True)
    for layer, stored in lens.last_cache.stored.items():
        for part in ("keys", "values", "log_count"):
            found, single = (getattr(x[layer].segments[1], part) for x in (lens.last_cache.stored, wanted))
            torch.testing.assert_close(found[1], single[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(stored.segments[1].at()[1] - 3, wanted[layer].segments[1].at()[0])


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
