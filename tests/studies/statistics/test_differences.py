"""Paired differences: numbers that can be had otherwise, sentences that say no more than they may."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import xarray as xr
from scipy import stats
from statsmodels.stats.multitest import multipletests

from benchmarks.clustered_nulls import differences, sizes
from interp.errors import InterpError, UnknownNameError
from interp.studies import statistics
from interp.studies.statistics.clusters import degrees_of_freedom
from interp.studies.statistics.families import holm


def scores(clusters: int = 40, icc: float = 0.4, seed: int = 0, **shifts: float) -> pd.DataFrame:
    """A baseline and methods that are better by so much."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(clusters), sizes(clusters, rng))
    full = differences("continuous", number, icc, 1, rng)[:, 0]
    own = {name: full + shift + differences("continuous", number, icc, 1, rng)[:, 0] for name, shift in shifts.items()}
    return pd.DataFrame({"item": np.arange(len(number)), "cluster": number, "full": full, **own})


def test_without_clusters_it_is_the_t_test():
    few = scores(6, one=0.3).iloc[:6]
    row = statistics.paired(few, "full", cluster=None).iloc[0]
    test = stats.ttest_rel(few["one"], few["full"])
    assert row["df"] == pytest.approx(5)
    assert (row["p"], row["low"], row["high"]) == pytest.approx((test.pvalue, *test.confidence_interval()))
    assert row["design_effect"] == pytest.approx(1)


def test_the_standard_error_is_cr2_by_matrices():
    """Bell and McCaffrey's formula with all its matrices, and statsmodels' CR1 beside it."""
    table = scores(12, one=0.2)
    d, number = (table["one"] - table["full"]).to_numpy(), table["cluster"].to_numpy()
    n = len(d)
    hat = np.full((n, n), 1 / n)
    residual, members = d - d.mean(), [np.flatnonzero(number == c) for c in range(12)]
    meat, gs = 0.0, []
    for rows in members:
        inner = np.eye(len(rows)) - hat[np.ix_(rows, rows)]
        values, vectors = np.linalg.eigh(inner)
        adjust = vectors @ np.diag(values**-0.5) @ vectors.T
        meat += float((np.ones(len(rows)) @ adjust @ residual[rows]) ** 2)
        gs.append((np.eye(n) - hat)[:, rows] @ adjust @ np.ones(len(rows)) / n)
    g = np.array(gs).T
    eigenvalues = np.linalg.eigvalsh(g.T @ g)
    row = statistics.paired(table, "full").iloc[0]
    assert row["se"] == pytest.approx(np.sqrt(meat) / n)
    assert row["df"] == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
    cr1 = sm.OLS(d, np.ones(n)).fit(cov_type="cluster", cov_kwds={"groups": number}).bse[0]
    assert row["se"] == pytest.approx(cr1, rel=0.05)
    assert degrees_of_freedom(np.full(12, 7.0)) == pytest.approx(11)


def test_the_interval_and_p_are_one_test():
    found = statistics.clustered_mean(*_values(scores(30, one=0.25)))
    for confidence in (0.8, 0.9, 0.95, 0.99):
        for limit in found.interval(confidence):
            assert found.p(limit) == pytest.approx(1 - confidence, abs=0.01)
    assert found.p_above(found.interval(0.9)[0]) == pytest.approx(0.05, abs=0.005)
    assert found.p_above(found.mean - 1) < found.p_above(found.mean - 0.1) < found.p_above(found.mean + 0.1)
    far = found.mean - 50 * found.se
    assert 0 < found.p(far) < 1e-6, "beyond all draws the standard error says how far"


def _values(table):
    return (table["one"] - table["full"]).to_numpy(), table["cluster"].to_numpy()


def test_the_same_seed_the_same_interval():
    first, second = (statistics.paired(scores(one=0.1), "full", seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    other = statistics.paired(scores(one=0.1), "full", seed=4)
    assert other["low"][0] != first["low"][0]
    assert other["low"][0] == pytest.approx(first["low"][0], abs=0.02)


def test_order_and_labels_do_not_matter():
    table = scores(one=0.1, two=0.0)
    mixed = table.sample(frac=1, random_state=0).assign(cluster=lambda t: t["cluster"].map(lambda c: f"page {c:03}"))
    a, b = statistics.paired(table, "full"), statistics.paired(mixed, "full")
    assert a["se"].to_numpy() == pytest.approx(b["se"].to_numpy())
    assert a["low"].to_numpy() == pytest.approx(b["low"].to_numpy(), abs=0.02)


def test_a_dataset_says_the_same():
    table = scores(one=0.1, two=0.0)
    along = {"item": table["item"].to_numpy(), "cluster": ("item", table["cluster"].to_numpy())}
    variables = xr.Dataset({m: ("item", table[m].to_numpy()) for m in ("full", "one", "two")}, along)
    array = xr.Dataset(
        {"score": (("method", "item"), table[["full", "one", "two"]].to_numpy().T)},
        {**along, "method": ["full", "one", "two"]},
    )
    wanted = statistics.paired(table, "full")
    pd.testing.assert_frame_equal(statistics.paired(variables, "full"), wanted)
    pd.testing.assert_frame_equal(statistics.paired(array, "full"), wanted)


def test_what_sentences_say():
    table = statistics.paired(scores(200, one=0.8, two=0.0, three=-0.8), "full", units="nats").set_index("method")
    assert table["sentence"]["one"].startswith("one is better than full by 0.7")
    assert "p < 0.0001 after Holm's correction over 3 comparisons" in table["sentence"]["one"]
    assert "design effect" in table["sentence"]["one"]
    assert table["sentence"]["three"].startswith("three is worse than full by")
    assert table["sentence"]["two"].startswith("No difference shown between two and full")
    assert "not to say that there is none" in table["sentence"]["two"]
    assert not any("significant" in sentence for sentence in table["sentence"])
    lower = statistics.paired(scores(200, one=0.8), "full", better="lower")["sentence"][0]
    assert lower.startswith("one is worse than full")
    neither = statistics.paired(scores(200, one=0.8), "full", better=None)["sentence"][0]
    assert neither.startswith("one is higher than full")


def test_holm_is_statsmodels():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        p = np.round(rng.random((3, size)) ** 3, 2)  # with ties
        for row, found in zip(p, holm(p), strict=True):
            assert found == pytest.approx(multipletests(row, method="holm")[1])


def test_a_correction_can_take_a_difference_back():
    """Of p = 0.03 alone something is shown; among ten comparisons it is not, and the sentence follows."""
    table = pd.concat([statistics.paired(scores(200, one=0.5), "full")] * 10)
    table["p"] = 0.03
    alone = statistics.corrected(table.iloc[:1])
    among = statistics.corrected(table)
    assert alone["sentence"][0].startswith("one is better")
    assert among["p_holm"].tolist() == pytest.approx([0.3] * 10)
    assert among["sentence"].str.startswith("No difference shown").all()
    assert (among["detectable"] > alone["detectable"][0]).all()


def test_equal_scores_are_said_to_be_equal_and_nothing_is_made_up():
    table = scores(10, one=0.1).assign(same=lambda t: t["full"], more=lambda t: t["full"] + 0.1)
    told = statistics.paired(table, "full", ["same", "more"]).set_index("method")
    assert told["sentence"]["same"].startswith("same and full score the same on every item")
    assert told["p"]["same"] == 1
    assert "is exactly 0.1 on every item" in told["sentence"]["more"]
    assert told[["low", "high"]].isna().all(axis=None)
    assert np.isnan(told["p"]["more"])


def test_missing_scores_are_left_out_and_said():
    table = scores(30, one=0.1)
    table.loc[:4, "one"] = np.nan
    row = statistics.paired(table, "full").iloc[0]
    assert (row["left_out"], row["items"]) == (5, len(table) - 5)
    assert "5 items without a score of one of them left out" in row["sentence"]
    kept = statistics.paired(table.iloc[5:], "full").iloc[0]
    assert row["difference"] == kept["difference"]


def test_few_clusters_that_differ_are_said():
    table = scores(30).assign(one=lambda t: t["full"] + (t["cluster"] < 3))
    assert "Only 3 of the clusters differ at all" in statistics.paired(table, "full")["sentence"][0]


@pytest.mark.parametrize(
    ("change", "asked", "error", "words"),
    [
        (lambda t: t.drop(columns="cluster"), {}, InterpError, "no column 'cluster'.*cluster=None"),
        (lambda t: t.drop(columns="item"), {}, InterpError, "no column 'item'"),
        (lambda t: t, {"baseline": "fulll"}, UnknownNameError, "full"),
        (lambda t: t, {"methods": ["onee"]}, UnknownNameError, "one"),
        (lambda t: t.drop(columns="one"), {}, InterpError, "nothing to compare"),
        (lambda t: t.assign(item=0), {}, InterpError, "occurs twice"),
        (lambda t: t.assign(one="a"), {}, InterpError, "no number"),
        (lambda t: t.assign(one=np.inf), {}, InterpError, "infinite"),
        (lambda t: t.assign(cluster=1), {}, InterpError, "one against full.*at least two clusters"),
        (lambda t: t.assign(cluster=np.nan), {}, InterpError, "has no cluster"),
        (lambda t: t.iloc[:0], {}, InterpError, "no scores"),
        (lambda t: t.to_dict(), {}, InterpError, "DataFrame"),
        (lambda t: t, {"confidence": 95}, InterpError, "between 0.5 and 1"),
        (lambda t: t, {"better": "up"}, InterpError, "better"),
        (lambda t: xr.Dataset({"a": ("x", [1.0])}), {}, InterpError, "no dimension 'item'"),
        (lambda t: pd.concat([t, t[["one"]]], axis=1), {}, InterpError, "two columns"),
    ],
)
def test_errors(change, asked, error, words):
    with pytest.raises(error, match=words):
        statistics.paired(change(scores(one=0.1)), **{"baseline": "full", **asked})


def test_errors_of_families():
    with pytest.raises(InterpError, match="no column 'family'"):
        statistics.corrected(pd.DataFrame({"p": [0.1]}))
