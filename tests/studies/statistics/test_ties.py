"""Groups of methods that nothing separates."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from interp.errors import InterpError
from interp.studies import statistics


def scores(**means: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(80), 5)
    shared = rng.normal(size=80)[number]
    own = {name: mean + shared + rng.normal(size=len(number)) for name, mean in means.items()}
    return pd.DataFrame({"item": np.arange(len(number)), "cluster": number, **own})


def test_groups_are_what_pairs_say():
    table = scores(a=0.0, b=0.02, c=0.25, d=0.4, e=2.0, f=2.05)
    found = statistics.tie_groups(table).set_index("method")
    assert list(found["mean"]) == sorted(found["mean"], reverse=True)
    pairs = list(combinations(found.index, 2))
    rows = pd.concat([statistics.paired(table, other, [one], family="all") for one, other in pairs])
    differ = statistics.corrected(rows)["p_holm"] < 0.05
    for (one, other), shown in zip(pairs, differ, strict=True):
        together = set(found["groups"][one]) & set(found["groups"][other])
        assert bool(together) != shown, (one, other)
        assert (other in found["above"][one].split(", ")) == shown
    assert found["groups"]["f"] == "a"
    assert found["sentence"]["f"].startswith("f is shown to be better than ")


def test_what_lies_between_two_groups_is_in_both():
    """a and c differ, and b from neither: no ranking says that."""
    table = scores(a=0.0, b=0.13, c=0.26)
    found = statistics.tie_groups(table, better="lower").set_index("method")
    assert found["groups"].to_dict() == {"a": "a", "b": "ab", "c": "b"}
    assert found["sentence"]["b"].startswith("b is not shown to differ from any of the 2 others")


def test_equals_are_one_group_in_nineteen_of_twenty():
    rng = np.random.default_rng(0)
    alone = 0
    for _ in range(100):
        table = pd.DataFrame({"item": range(60), **{name: rng.normal(size=60) for name in "abcde"}})
        alone += set(statistics.tie_groups(table, cluster=None, resamples=999)["groups"]) == {"a"}
    assert alone >= 88


def test_missing_scores_are_left_out_of_all():
    table = scores(a=0.0, b=1.0)
    table.loc[0, "a"] = np.nan
    assert statistics.tie_groups(table)["left_out"].tolist() == [1, 1]
    with pytest.raises(InterpError, match="no item has a score of every method"):
        statistics.tie_groups(table.assign(a=np.nan))
    with pytest.raises(InterpError, match="at least two methods"):
        statistics.tie_groups(table, ["a"])
