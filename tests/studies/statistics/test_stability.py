"""Ranks, as far as the items leave them open."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.errors import InterpError
from interp.studies import statistics


def values(means: list[float], seed: int = 0, clusters: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(clusters), 4)
    shared = rng.normal(size=(clusters, len(means)))[number]
    table = np.array(means) + shared + rng.normal(size=shared.shape)
    return pd.DataFrame({"item": np.arange(len(number)), "cluster": number}).join(
        pd.DataFrame(table, columns=[f"head {i}" for i in range(len(means))])
    )


def test_a_clear_order_is_certain_and_a_tie_is_not():
    found = statistics.rank_stability(values([0, 5, 0.01, 10]), top=2).set_index("unit")
    assert found["rank"][["head 3", "head 1"]].tolist() == [1, 2]
    assert (found["rank_low"] == [1, 2, 3, 3]).all()
    assert (found["rank_high"] == [1, 2, 4, 4]).all()
    assert found["first_share"]["head 3"] == 1
    assert found["top_share"].tolist() == [1, 1, 0, 0]
    assert "leave no other rank open" in found["sentence"]["head 3"]
    assert "ranks 3 to 4 open" in found["sentence"]["head 0"]


@pytest.mark.parametrize("means", [[0] * 6, [0, 0, 0, 0.5, 1.0, 1.0]])
def test_intervals_hold_the_true_ranks(means):
    """A unit that is tied has all ranks of its tie; an interval is right if it holds them all."""
    truth = np.array(means)
    best, worst = 1 + (truth[None] > truth[:, None]).sum(1), (truth[None] >= truth[:, None]).sum(1)
    held = []
    for seed in range(150):
        found = statistics.rank_stability(values(means, seed), top=1, resamples=20).set_index("unit")
        found = found.loc[[f"head {i}" for i in range(6)]]
        held.append((found["rank_low"].to_numpy() <= best) & (found["rank_high"].to_numpy() >= worst))
    assert np.mean(held, axis=0).min() >= 0.95 - 0.06


def test_the_first_of_equals_is_not_stable():
    """Though its own resamples would often say so."""
    found = statistics.rank_stability(values([0] * 10), top=3)
    assert found["rank_high"][0] > 3
    assert found.attrs["kendall"] < 0.9
    clear = statistics.rank_stability(values(list(range(0, 50, 5))), top=3)
    assert clear.attrs["kendall"] > 0.99


def test_errors():
    table = values([0, 1])
    with pytest.raises(InterpError, match="at least two units"):
        statistics.rank_stability(table, ["head 0"])
    with pytest.raises(InterpError, match="top is a number of units"):
        statistics.rank_stability(table, top=3)
    with pytest.raises(InterpError, match="two clusters"):
        statistics.rank_stability(table.assign(cluster=0), top=1)
