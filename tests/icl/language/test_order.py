"""Order sensitivity: zero for what sums over its context, known for what does not."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.icl import gd
from interp.icl.language import order_sensitivity
from interp.icl.language.order import draw_orders
from tests.probes.schema import check_result

Pair = tuple[torch.Tensor, torch.Tensor]


def pairs(n: int = 8, d: int = 3) -> tuple[list[Pair], list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n + 4, d, generator=draw, dtype=torch.float64)
    y = x @ torch.randn(d, generator=draw, dtype=torch.float64)
    return [(x[i], y[i]) for i in range(n)], list(x[n:])


def linear_attention(demos: list[Pair], query: torch.Tensor) -> torch.Tensor:
    """One head without positions and without softmax, keys x and values y, random projections."""
    draw = torch.Generator().manual_seed(1)
    W_Q, W_K = torch.randn(2, len(query), len(query), generator=draw, dtype=torch.float64)
    return sum((W_K @ x) @ (W_Q @ query) * y for x, y in demos)


def full_batch_gd(demos: list[Pair], query: torch.Tensor) -> torch.Tensor:
    w = torch.zeros_like(query)
    for _ in range(5):
        w = w - 0.05 * sum((w @ x - y) * x for x, y in demos)
    return w @ query


def package_gd(demos: list[Pair], query: torch.Tensor) -> torch.Tensor:
    X, y = torch.stack([x for x, _ in demos]), torch.stack([y for _, y in demos])
    return gd(steps=5, eta=0.4)(X[None], y[None], query[None])


def stochastic_gd(demos: list[Pair], query: torch.Tensor) -> torch.Tensor:
    w = torch.zeros_like(query)
    for x, y in demos:
        w = w - 0.1 * (w @ x - y) * x
    return w @ query


@pytest.mark.parametrize("predict", [linear_attention, full_batch_gd, package_gd])
def test_what_sums_over_its_context_has_no_order(predict):
    demos, queries = pairs()
    ds = order_sensitivity(predict, demos, queries, permutations=12)
    assert float(ds["order_sensitivity"]) <= 1e-14 * float(predict(demos, queries[0]).abs().max() + 1)


def test_one_pass_of_sgd_has_one():
    demos, queries = pairs()
    assert float(order_sensitivity(stochastic_gd, demos, queries)["order_sensitivity"]) > 0.01


def test_two_orders_differ_by_root_two_times_their_spread(tmp_path):
    demos, queries = pairs(2)
    ds = order_sensitivity(stochastic_gd, demos, queries, permutations=2)
    there, back = ([stochastic_gd(order, q) for q in queries] for order in (demos, demos[::-1]))
    expected = [abs(float(a - b)) / math.sqrt(2) for a, b in zip(there, back, strict=True)]
    np.testing.assert_allclose(ds["sensitivity"], expected, rtol=1e-12)
    assert float(ds["order_sensitivity"]) == pytest.approx(np.mean(expected))
    assert float(ds["order_sensitivity_se"]) == pytest.approx(np.std(expected, ddof=1) / 2)
    check_result(ds, tmp_path)


def test_outcomes_of_a_distribution_add_up():
    """The first demonstration decides: each of n outcomes has probability 1 in 1/n of the orders."""
    n = 4
    ds = order_sensitivity(lambda demos, _: torch.eye(n)[demos[0]], range(n), ["?"], permutations=math.factorial(n))
    orders = math.factorial(n)
    by_outcome = math.sqrt(orders / (orders - 1) * (1 / n) * (1 - 1 / n))
    assert float(ds["order_sensitivity"]) == pytest.approx(n * by_outcome)
    assert math.isnan(float(ds["order_sensitivity_se"]))


def test_a_prediction_may_be_a_plain_number():
    ds = order_sensitivity(lambda demos, query: demos[0] * query, [1.0, 2.0], [3.0], permutations=2)
    assert float(ds["order_sensitivity"]) == pytest.approx(3 / math.sqrt(2))


@settings(max_examples=40)
@given(st.integers(2, 9), st.data())
def test_orders_are_different_orders(n, data):
    count = data.draw(st.integers(2, min(math.factorial(n), 30)))
    orders = draw_orders(n, count, seed=count)
    assert orders[0] == list(range(n))
    assert len({tuple(order) for order in orders}) == count
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert orders == draw_orders(n, count, seed=count)


def test_all_orders_are_drawn_where_all_are_asked_for():
    assert {tuple(order) for order in draw_orders(4, 24, 0)} == set(permutations(range(4)))


@pytest.mark.parametrize(
    ("demos", "queries", "count", "said"),
    [
        (2, 1, 3, "3 orders of 2 demonstrations were asked for; there are 2"),
        (5, 1, 1, "a spread needs at least 2"),
        (5, 0, 5, "pass at least one"),
    ],
)
def test_too_few_orders_or_queries_are_refused(demos, queries, count, said):
    with pytest.raises(InterpError, match=said):
        order_sensitivity(lambda demos, query: torch.zeros(1), range(demos), range(queries), count)
