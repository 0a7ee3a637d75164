"""Attention matching: what is fitted against scipy's and numpy's least squares, and against what there was."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

import interp
from interp import InterpError
from interp.interventions.policies._summaries import Readers
from interp.interventions.policies.attention_matching import AttentionMatching, attention, bounded, refitted
from interp.seam.event import AttentionEvent
from tests.interventions.test_recall import applied, layer
from tests.models import shared, tokens

REFUSES = {"gemma2": "caps its attention logits"}


@pytest.mark.parametrize("bound", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("shape", [(40, 6), (10, 25)])
def test_weights_are_the_bounded_least_squares(shape: tuple[int, int], bound: float) -> None:
    make = torch.Generator().manual_seed(1)
    paid, mass = torch.rand(*shape, generator=make).square() / shape[1], torch.rand(shape[0], generator=make)
    found = bounded(paid, mass, bound)
    low, high = np.exp(-bound) - 1e-6, np.exp(bound) + 1e-6
    best = scipy.optimize.lsq_linear(paid.double().numpy(), mass.double().numpy(), bounds=(low, high), tol=1e-12)

    def miss(weight: torch.Tensor) -> float:
        return float((paid.double() @ weight.double() - mass.double()).square().sum())

    assert low <= float(found.min())
    assert float(found.max()) <= high
    assert miss(found) <= miss(torch.tensor(best.x)) * 1.02 + 1e-6
    assert miss(found) <= miss(torch.ones_like(found)) + 1e-7


def test_values_are_the_least_squares_where_the_pull_is_weak_and_their_own_where_it_is_strong() -> None:
    make = torch.Generator().manual_seed(2)
    paid, values = (torch.rand(*shape, generator=make) for shape in ((50, 6), (6, 3)))
    out = torch.randn(50, 3, generator=make)
    best = np.linalg.lstsq(paid.numpy(), out.numpy(), rcond=None)[0]
    np.testing.assert_allclose(refitted(paid, out, values, 1e-6), best, atol=1e-3)
    torch.testing.assert_close(refitted(paid, out, values, 1e7), values, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_is_left_gives_the_readers_more_of_what_there_was_than_the_same_tokens_unfitted() -> None:
    q, k, v = layer(1, 6, 2, 100, 8)
    stored, plan = applied(AttentionMatching(budget=30, sinks=2, queries=1.0), q, k, v)
    old, tail = stored.segments
    assert (len(old), len(tail)) == (23, 7)
    assert old.log_count is not None
    assert plan.readers == {}
    event = AttentionEvent(0, q, k, v, 8**-0.5, facts={"causal": True, "offset": 0})
    late = slice(60, 93)  # rows that see the kept tokens and none of the tail
    missed = {}
    for fit in (True, False):
        scores = (q[0, 0, late] * 8**-0.5) @ old.keys[0, 0].T + (old.log_count[0, 0] if fit else 0.0)
        hidden = old.at()[0, 0] > torch.arange(60, 93)[:, None]
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        values = old.values[0, 0] if fit else v[0, 0, old.at()[0, 0].long()]
        missed[fit] = float((pattern @ values - event.apply(v)[0, 0, late]).square().mean())
    assert missed[True] < 0.6 * missed[False]


@torch.no_grad()
def test_scores_are_the_root_mean_square_of_the_attention_received() -> None:
    q, k, v = layer(1, 4, 2, 20, 8)
    event = AttentionEvent(0, q, k, v, 8**-0.5, facts={"causal": True, "offset": 0})
    scores = AttentionMatching(queries=0.5).scores(0, event)
    full = (q.unflatten(1, (2, 2)) @ k[:, :, None].mT * 8**-0.5).masked_fill(
        ~torch.ones(20, 20).tril().bool(), -torch.inf
    )
    torch.testing.assert_close(scores, full.softmax(-1)[..., 10:, :].flatten(2, 3).square().mean(2).sqrt())


def test_attention_to_some_tokens_is_their_part_of_one() -> None:
    rows, keys = torch.randn(3, 4), torch.randn(5, 4)
    lse = (rows @ keys.T).logsumexp(-1)
    readers = Readers(rows, lse, torch.tensor([9, 9, 2]))
    paid = attention(readers, keys, torch.arange(5))
    torch.testing.assert_close(paid[:2].sum(-1), torch.ones(2))
    assert not paid[2, 3:].any()


def test_with_room_for_all_nothing_is_fitted() -> None:
    stored, _ = applied(AttentionMatching(budget=1.0), *layer(1, 2, 1, 40, 4))
    assert [segment.log_count for segment in stored.segments] == [None] * len(stored.segments)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"queries": 0.0}, "share above 0"), ({"bias_bound": -1.0}, "at least 0"), ({"ridge": 0.0}, "ridge above 0")],
)
def test_bad_settings_are_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises(InterpError, match=says):
        AttentionMatching(**settings)


def test_another_turn_stays_within_a_whole_number() -> None:
    lens = interp.load(shared("llama"))
    with lens.apply(AttentionMatching(budget=12)):
        lens(tokens(length=30), use_cache=True)
        cache = lens.last_cache
        lens(tokens(length=9, seed=4), past_key_values=cache, use_cache=True)
    assert {stored.kept for stored in cache.stored.values()} == {12}
