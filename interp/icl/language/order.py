"""Order sensitivity: how far a prediction moves when the same demonstrations come in another order.

Sen of Shen, Mishra and Khashabi 2023 ("Do pretrained transformers really learn in-context by gradient descent?",
arXiv:2310.08540), taken from memory, not checked against the paper: the standard deviation over orders of each
outcome's probability, summed over outcomes, averaged over queries. Full-batch gradient descent and linear attention
without positions have none; stochastic gradient descent and language models do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations as all_orders
from typing import TypeVar

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from interp.errors import InterpError
from interp.icl.measures._means import mean
from interp.results.described import described

Demo = TypeVar("Demo")
Query = TypeVar("Query")

LISTED = 5040
"""Up to so many orders (7 demonstrations) are listed and drawn from; of more, a few at random are hardly ever equal."""


def order_sensitivity(
    predict: Callable[[list[Demo], Query], Float[torch.Tensor, " outcome"] | float],
    demos: Sequence[Demo],
    queries: Sequence[Query],
    permutations: int = 10,
    seed: int = 0,
) -> xr.Dataset:
    """Sen of any predictor over `permutations` different orders of `demos`.

    Args:
        predict: maps demonstrations in an order and one query to a distribution over outcomes (next tokens, labels), or
            to any vector or number: a regression's prediction counts as one outcome.
        demos: the demonstrations, whatever `predict` takes.
        queries: one or more queries.
        permutations: how many orders; with n demonstrations at most n!. The same seed gives the same orders, so ICL and
            fine-tuning can be compared over the same ones.

    The standard deviation has divisor P - 1: the variance that it squares to does not depend on P in the mean.

    Returns a dataset with `sensitivity` (query), its mean `order_sensitivity` and the standard error
    `order_sensitivity_se` over queries (NaN for one query), in the units of the prediction.

    Raises:
        InterpError: fewer than two orders, more than there are, or no query.
    """
    orders = draw_orders(len(demos), permutations, seed)
    if not len(queries):
        raise InterpError("order_sensitivity averages over queries; pass at least one.")
    spreads = []
    for query in queries:
        outcomes = [torch.as_tensor(predict([demos[i] for i in order], query)).detach() for order in orders]
        spreads.append(float(torch.stack(outcomes).double().std(0).sum()))
    sen = mean(torch.tensor(spreads))
    said = "standard deviation over orders of each outcome, summed over outcomes"
    return described(
        {
            "sensitivity": ("query", np.array(spreads), "1", said),
            "order_sensitivity": ((), sen.value, "1", "Sen: mean over queries"),
            "order_sensitivity_se": ((), sen.se, "1", "standard error over queries"),
        },
        {"query": np.arange(len(spreads))},
        {
            "title": "Order sensitivity",
            "description": "How far predictions move when the same demonstrations come in another order",
            "demonstrations": len(demos),
            "permutations": permutations,
            "seed": seed,
        },
    )


def draw_orders(n: int, count: int, seed: int) -> list[list[int]]:
    """`count` different orders of n things, the given one first.

    Raises InterpError for fewer than two orders or more than n!.
    """
    if not 2 <= count <= math.factorial(n):
        raise InterpError(
            f"{count} orders of {n} demonstrations were asked for; there are {math.factorial(n):,}, and a spread needs "
            "at least 2."
        )
    rng = np.random.default_rng(seed)
    given = tuple(range(n))
    if math.factorial(n) <= LISTED:
        others = list(all_orders(range(n)))[1:]
        drawn = [others[i] for i in rng.choice(len(others), count - 1, replace=False)]
    else:
        seen: dict[tuple[int, ...], None] = {}
        while len(seen) < count - 1:
            order = tuple(rng.permutation(n).tolist())
            if order != given:
                seen[order] = None
        drawn = list(seen)
    return [list(order) for order in (given, *drawn)]
