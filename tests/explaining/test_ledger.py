"""The merge ledger has every eviction once."""

from __future__ import annotations

import numpy as np

from interp.explaining import available
from tests.explaining.cases import Drop, G, S, ask, case_of


def test_ledger_has_every_eviction_and_no_retained_token(lens):
    case = case_of(lens, Drop(stepping=True))
    ds = available()["ledger"]().ask(case)
    for layer in range(3):
        for head in range(2):
            mine = (ds["layer"] == layer) & (ds["head"] == head)
            evicted = ds["evicted_position"].values[mine.values]
            held = (case.policy.evicted_at[layer][head] > G).nonzero()[:, 0].tolist()
            assert len(evicted) == len(set(evicted))
            # what goes in the very last step is written down, but no later step misses it
            assert not set(evicted[:-1]) & set(held)
            assert set(evicted) | set(held) == set(range(S + G))
    assert (ds["score"].values == ds["evicted_position"].values + 0.5 + ds["layer"].values).all()
    assert ds["evictions"].sum() == ds.sizes["eviction"]
    assert list(ds["seen"].values) == list(range(S, S + G + 1))
    assert [str(t) for t in ds["evicted_text"].values[:3]] == [
        case.token_text[i] for i in ds["evicted_position"].values[:3]
    ]


def test_ledger_of_a_policy_that_merges_names_targets(lens):
    ds = ask(lens, Drop(merge=True), "ledger")
    assert (ds["target_position"] == ds["evicted_position"] + 1).all()
    assert (ds["merged"] == 1).all()
    np.testing.assert_allclose(ds["merge_rate"], 1.0)
    np.testing.assert_allclose(ds["threshold"], np.where(ds["head"] == 0, 0.4, 0.3))
    without = ask(lens, Drop(), "ledger")
    assert (without["target_position"] == -1).all()
    assert (without["merge_rate"] == 0).all()


def test_share_of_heads_is_counted_by_token(lens):
    share = ask(lens, Drop(every=4), "ledger")["layer_evicted"].values
    expected = [0.5 if i % 4 in (0, 1) and i < S - 4 else 0.0 for i in range(S + G)]
    np.testing.assert_allclose(share, np.tile(expected, (3, 1)))
