"""No loss and no difference are said only where a margin is shown to be kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from benchmarks.clustered_nulls import differences, sizes
from interp.errors import InterpError
from interp.studies import statistics
from interp.studies.statistics.clusters import clustered_means


def scores(shift: float, clusters: int = 100, noise: float = 0.2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(clusters), sizes(clusters, rng))
    full = rng.normal(size=len(number))
    own = full + shift + noise * differences("continuous", number, 0.3, 1, rng)[:, 0]
    return pd.DataFrame({"item": np.arange(len(number)), "cluster": number, "full": full, "small": own})


def test_of_independent_items_it_is_the_two_t_tests():
    table = scores(0.05).iloc[:10]
    row = statistics.equivalence(table, "full", 0.3, cluster=None).iloc[0]
    p, lower, _ = ttost_paired(table["small"].to_numpy(), table["full"].to_numpy(), -0.3, 0.3)
    assert (row["p"], row["p_loss"]) == pytest.approx((p, lower[1]))
    assert stats.ttest_rel(table["small"], table["full"]).confidence_interval(0.9) == pytest.approx(
        (row["low"], row["high"])
    )


@pytest.mark.parametrize(
    ("shift", "better", "no_loss", "equivalent", "words"),
    [
        (0.0, "higher", True, True, "differs from full by less than 0.1 nats, in either direction"),
        (0.5, "higher", True, False, "loses less than 0.1 nats against full"),
        (0.5, "lower", False, False, "not shown that small loses less"),
        (-0.5, "higher", False, False, "not shown that small loses less"),
        (-0.5, "lower", True, False, "loses less than 0.1 nats against full"),
    ],
)
def test_what_is_shown(shift, better, no_loss, equivalent, words):
    row = statistics.equivalence(scores(shift), "full", 0.1, better=better, units="nats").iloc[0]
    assert (row["no_loss"], row["equivalent"]) == (no_loss, equivalent)
    assert words in row["sentence"]


def test_few_items_show_no_equivalence():
    """Where `paired` shows no difference either: no evidence is not evidence of none."""
    few = scores(0.0, clusters=4, noise=2.0)
    assert statistics.paired(few, "full")["sentence"][0].startswith("No difference shown")
    assert not statistics.equivalence(few, "full", 0.1)["equivalent"][0]


def test_scores_that_are_equal_show_nothing_by_test():
    table = scores(0.0).assign(small=lambda t: t["full"])
    row = statistics.equivalence(table, "full", 0.1).iloc[0]
    assert np.isnan(row["p"])
    assert not row["equivalent"]
    assert "no test" in row["sentence"]


def test_a_true_loss_of_the_margin_is_missed_in_one_of_twenty():
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(40), sizes(40, rng))
    values = differences("continuous", number, 0.3, 2_000, rng) - 0.4
    shown = [one.p_above(-0.4) < 0.05 for one in clustered_means(values, number, resamples=1_999)]
    assert np.mean(shown) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("margin", [0, -1, np.nan, np.inf])
def test_errors(margin):
    with pytest.raises(InterpError, match="margin is a positive number"):
        statistics.equivalence(scores(0), "full", margin)
    with pytest.raises(InterpError, match="alpha"):
        statistics.equivalence(scores(0), "full", 0.1, alpha=1)
