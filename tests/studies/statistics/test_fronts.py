"""The Pareto front, by the means and by resamples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.errors import InterpError, UnknownNameError
from interp.studies import statistics
from interp.studies.statistics.fronts import beaten


def scores(**means: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(40), 5)
    own = {name: mean + rng.normal(size=len(number)) for name, mean in means.items()}
    return pd.DataFrame({"item": np.arange(len(number)), "cluster": number, **own})


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    quality, prices = rng.integers(0, 4, (50, 6)).astype(float), rng.integers(0, 4, 6).astype(float)
    for row, found in zip(quality, beaten(quality, prices), strict=True):
        for i in range(6):
            better = [
                row[j] >= row[i] and prices[j] <= prices[i] and (row[j] > row[i] or prices[j] < prices[i])
                for j in range(6)
            ]
            assert found[i] == any(better)


def test_shown_and_not_shown():
    table = scores(cheap=0.0, middle=1.0, behind=0.0, bad=-2.0)
    table["behind"] += table["middle"].mean() - table["behind"].mean() - 0.05
    cost = {"cheap": 1.0, "middle": 2.0, "behind": 3.0, "bad": 4.0}
    found = statistics.pareto(table, cost).set_index("method")
    assert found["on_front"].to_dict() == {"cheap": True, "middle": True, "behind": False, "bad": False}
    assert found["behind"].to_dict() == {"cheap": "", "middle": "", "behind": "middle", "bad": "middle"}
    assert found["front_share"]["cheap"] == 1
    assert 0.05 < found["front_share"]["behind"] < 0.6
    assert found["front_share"]["bad"] == 0
    assert "by the means alone: that it scores worse is not shown" in found["sentence"]["behind"]
    assert "and scores worse (p < 0.0001 after Holm's correction)" in found["sentence"]["bad"]


def test_speed_and_loss():
    """More tokens a second are cheaper, a lower loss is better."""
    table = scores(slow=0.0, fast=1.0, both=2.0)
    speed = {"slow": 10.0, "fast": 30.0, "both": 20.0}
    found = statistics.pareto(table, speed, cost_name="tokens/s", cheaper="higher", better="lower")
    assert found["method"].tolist() == ["fast", "both", "slow"]
    assert found["behind"].tolist() == ["", "fast", ""]
    assert found["mean"].to_numpy() == pytest.approx(table[["fast", "both", "slow"]].mean().to_numpy())
    assert "30 tokens/s" in found["sentence"][0]


def test_errors():
    table = scores(a=0.0, b=1.0)
    with pytest.raises(InterpError, match="at least two methods"):
        statistics.pareto(table, {"a": 1})
    with pytest.raises(UnknownNameError, match="no column of scores"):
        statistics.pareto(table, {"a": 1, "bb": 2})
    with pytest.raises(InterpError, match="not finite"):
        statistics.pareto(table, {"a": 1, "b": np.nan})
    with pytest.raises(UnknownNameError, match="direction"):
        statistics.pareto(table, {"a": 1, "b": 2}, cheaper="up")
