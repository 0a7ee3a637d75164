"""Controls: that nothing is found where nothing is, and that they can fail."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.errors import InterpError
from interp.studies import statistics


def scores(**shifts: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(60), 4)
    full = rng.normal(size=len(number))
    shared = rng.normal(size=(60, len(shifts)))[number]
    own = {
        name: full + shift + shared[:, i] + rng.normal(size=len(number))
        for i, (name, shift) in enumerate(shifts.items())
    }
    return pd.DataFrame({"item": np.arange(len(number)), "cluster": number, "full": full, **own})


def test_the_same_run_twice():
    table = scores(again=0.0, drifted=1.0).assign(same=lambda t: t["full"], more=lambda t: t["full"] + 0.5)
    rows = {name: statistics.same_twice(table, "full", name).iloc[0] for name in ("same", "again", "drifted", "more")}
    assert {name: bool(row["alarm"]) for name, row in rows.items()} == {
        "same": False, "again": False, "drifted": True, "more": True,
    }  # fmt: skip
    assert rows["same"]["sentence"].endswith("score the same on every one of 240 items.")
    assert "no difference is shown between them" in rows["again"]["sentence"]
    assert "something besides the method differs" in rows["drifted"]["sentence"]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_false_alarms_are_one_in_twenty_whatever_the_true_difference(shift):
    row = statistics.false_alarms(scores(one=shift), "full", "one", resamples=1_999).iloc[0]
    assert row["low"] < 0.05 < row["high"]
    assert row["sentence"].endswith("as they should.")


def test_false_alarms_see_a_test_that_is_wrong():
    """Without the clusters, half of them swapped at a time: far more than one in twenty."""
    table = scores(one=0.0)
    d = table["one"] - table["full"]
    swapped = np.random.default_rng(0).choice([-1.0, 1.0], (60, 500))[table["cluster"]] * d.to_numpy()[:, None]
    naive = np.abs(swapped.mean(0)) / (swapped.std(0, ddof=1) / np.sqrt(len(d))) > 1.96
    assert naive.mean() > 0.1


def test_better_than_random_choice():
    table = scores(seed0=-1.0, seed1=-1.0, seed2=-1.0, good=0.0, useless=-1.0)
    found = statistics.against_random(table, ["seed0", "seed1", "seed2"], ["good", "useless"]).set_index("method")
    assert found["beats_random"].to_dict() == {"good": True, "useless": False}
    assert (found["baseline"] == "random choice").all()
    assert found["sentence"]["useless"].startswith("No difference shown between useless and random choice")
    assert found["sentence"]["good"].endswith("mean of 3 seeds.")
    mean = table[["seed0", "seed1", "seed2"]].mean(axis=1).mean()
    assert found["baseline_mean"]["good"] == pytest.approx(mean)
    worse = statistics.against_random(table, ["seed0"], ["good"], better="lower")
    assert not worse["beats_random"][0]


def test_errors():
    table = scores(one=0.0).assign(same=lambda t: t["full"])
    with pytest.raises(InterpError, match="equal on every item"):
        statistics.false_alarms(table, "full", "same")
    with pytest.raises(InterpError, match="at least one random choice"):
        statistics.against_random(table, [])
