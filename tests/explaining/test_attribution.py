"""Putting channels and tokens back: all of them is the full cache, one is what a hook on dense keys does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from interp.explaining.attribution import Attribution, Reader, chosen
from interp.explaining.case import Case
from interp.explaining.restoring import with_channels
from interp.explaining.scores import channel_scores, token_scores, value_channel_scores
from interp.interventions.policies.think import ThinK
from tests.explaining.cases import THINK, Drop, G, S, ask, case_of
from tests.models import tokens


@pytest.mark.parametrize(
    "policy",
    [
        THINK,
        dataclasses.replace(THINK, granularity="query_head", sinks=2),
        dataclasses.replace(THINK, fill="mean"),
        dataclasses.replace(THINK, value_ratio=0.0, selector="random"),
    ],
)
def test_putting_all_channels_back_is_the_full_cache(lens, policy):
    case = case_of(lens, policy)
    places = list(channel_scores(case))
    assert len(places) == 3 * (8 if policy.granularity == "query_head" else 2) * 4
    check_all_put_back(case, "channels", places)


@pytest.mark.parametrize(
    "policy",
    [
        ThinK(ratio=0.0, value_ratio=0.5, window=8, recent=8),
        ThinK(ratio=0.0, value_ratio=0.5, window=8, recent=8, granularity="query_head", value_score="magnitude"),
    ],
)
def test_putting_all_value_channels_back_is_the_full_cache(lens, policy):
    case = case_of(lens, policy)
    places = list(value_channel_scores(case))
    assert len(places) == 3 * (8 if policy.granularity == "query_head" else 2) * 4
    check_all_put_back(case, "value_channels", places)


def test_channels_of_keys_and_values_come_back_by_themselves(lens):
    case = case_of(lens, dataclasses.replace(THINK, value_ratio=0.5))
    full = {i: event.v[:, :, :S] for i, event in case.full.events.items()}
    cache = with_channels(case.policy.rest, full, [list(value_channel_scores(case))], "values")
    for layer, stored in cache.stored.items():
        packed, was = stored.segments[0], case.policy.rest.stored[layer].segments[0]
        assert torch.equal(packed.dense_values(8), full[layer][:, :, : len(packed)])
        assert torch.equal(packed.dense_keys(8), was.dense_keys(8))


@pytest.mark.parametrize("value_score", ["magnitude", "attn", "attn_wo"])
@pytest.mark.parametrize("granularity", ["kv_head", "query_head"])
def test_value_channel_scores_rank_as_the_policy_did(lens, value_score, granularity):
    policy = ThinK(ratio=0.0, value_ratio=0.5, window=8, recent=8, value_score=value_score, granularity=granularity)
    dropped = value_channel_scores(case_of(lens, policy))
    all_but_one = value_channel_scores(case_of(lens, dataclasses.replace(policy, value_ratio=0.875)))
    places = {place[:2] for place in dropped}
    assert len(places) == 3 * (8 if granularity == "query_head" else 2)
    for place in places:
        own = {c: s for (*at, c), s in all_but_one.items() if tuple(at) == place}
        mine = {c: s for (*at, c), s in dropped.items() if tuple(at) == place}
        assert mine == pytest.approx({c: own[c] for c in mine})
        assert max(mine.values()) <= min(s for c, s in own.items() if c not in mine)


def test_what_is_put_back_is_what_was_dropped(lens):
    nothing = dataclasses.replace(THINK, ratio=0.0)
    for policy, of in (
        (THINK, "channels"),
        (Drop() | dataclasses.replace(THINK, value_ratio=0.5), "channels"),
        (Drop() | dataclasses.replace(nothing, value_ratio=0.5), "value_channels"),
        (Drop() | nothing, "tokens"),
    ):
        assert ask(lens, policy, Attribution(samples=2, steps=1)).attrs["of"] == of


def test_putting_all_tokens_back_is_the_full_cache(lens):
    case = case_of(lens, Drop())
    places = list(token_scores(case))
    assert len(places) == 3 * 2 * 9
    check_all_put_back(case, "tokens", places)


def check_all_put_back(case: Case, of: str, places: list) -> None:
    question = Attribution(of=of)
    run = Reader(case, of, case.fed[:, :6], question._pair(case, 0, 6))
    nothing, everything, some = run.read(run.restored_together([[], places, places[::3]]))
    full = run.full_difference()
    pruned = run.read(run.restored_together([[]]))[0]
    assert (full - pruned).abs().max() > 1e-2, "else there is nothing to tell apart"
    torch.testing.assert_close(nothing, pruned, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(everything, full, atol=2e-5, rtol=1e-5)
    assert (some - full).abs().max() > 1e-3
    assert (some - pruned).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("policy", "question", "part"),
    [
        (THINK, Attribution(samples=6, steps=1, batch=4), "keys"),
        (ThinK(ratio=0.0, value_ratio=0.5, window=8, recent=8), Attribution(samples=4, steps=1), "values"),
    ],
    ids=["keys", "values"],
)
def test_one_channel_put_back_against_zeros_in_the_dense_cache(lens, policy, question, part):
    """The same effect from the full model whose keys, or values, are zeroed in all dropped channels but one."""
    ds = ask(lens, policy, question)
    assert ds.attrs["of"] == {"keys": "channels", "values": "value_channels"}[part]
    case = case_of(lens, policy)
    kept = {i: s.segments[0].stored_channels(part)[0].long() for i, s in case.policy.rest.stored.items()}
    rival = int(ds["rival_text"].item().strip("<>"))

    @torch.no_grad()
    def difference(back: tuple[int, int, int] | None) -> float:
        lens(case.prompt, use_cache=True)
        cache = lens.last_cache
        for layer in range(3):
            for head in range(2):
                stays = kept[layer][head].tolist() + ([back[2]] if back and back[:2] == (layer, head) else [])
                dense = getattr(cache.layers[layer], part)
                dense[0, head, : S - policy.recent, [c for c in range(8) if c not in stays]] = 0.0
        logits = lens(case.fed[:, :1], past_key_values=cache, use_cache=True)[0, -1]
        return float(logits[int(case.continuation[0, 1])] - logits[rival])

    pruned = difference(None)
    assert ds["pruned"].item() == pytest.approx(pruned, abs=1e-4)
    for i in range(question.samples):
        place = tuple(int(ds[name][i]) for name in ("layer", "kv_head", "channel"))
        assert float(ds["effect"][i, 0]) == pytest.approx(difference(place) - pruned, abs=1e-4)


def test_attribution_does_not_depend_on_the_batch_and_leaves_the_cache_alone(lens):
    one = ask(lens, THINK, Attribution(samples=5, batch=1))
    many = ask(lens, THINK, Attribution(samples=5, batch=5))
    np.testing.assert_allclose(one["effect"], many["effect"], atol=1e-5)
    case = case_of(lens, Drop(stepping=True) | THINK)
    before = [t.clone() for _, _, t in case.policy.rest.parts()]
    Attribution(samples=5).ask(case)
    after = [t for _, _, t in case.policy.rest.parts()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_channels_scores_rank_as_the_policy_did(lens):
    """What it dropped scores below what it kept, in every head: recomputed scores are the policy's own."""
    for policy in (
        THINK,
        dataclasses.replace(THINK, selector="key_norm"),
        dataclasses.replace(THINK, score_tokens="prunable"),
        dataclasses.replace(THINK, window=None),
        dataclasses.replace(THINK, fill="mean", score_tokens="prunable"),
    ):
        case = case_of(lens, policy)
        dropped = channel_scores(case)
        all_but_one = channel_scores(case_of(lens, dataclasses.replace(policy, ratio=0.875)))
        for layer in range(3):
            for head in range(2):
                own = {c: s for (i, h, c), s in all_but_one.items() if (i, h) == (layer, head)}
                mine = {c: s for (i, h, c), s in dropped.items() if (i, h) == (layer, head)}
                assert mine == pytest.approx({c: own[c] for c in mine})
                assert max(mine.values()) <= min(s for c, s in own.items() if c not in mine)


def test_token_scores_are_those_of_the_ledger(lens):
    case = case_of(lens, Drop(stepping=True))
    scores = token_scores(case)
    assert all(score == at + 0.5 + layer for (layer, _, at), score in scores.items())
    assert {at for _, head, at in scores if head == 1} == {i for i in range(S - 4) if i % 4 == 1}


def test_half_the_samples_are_the_highest_scores(lens):
    ds = ask(lens, THINK, Attribution(samples=8, batch=3))
    case = case_of(lens, THINK)
    scores = channel_scores(case)
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:4]
    found = list(zip(*(ds[n].values[:4].tolist() for n in ("layer", "kv_head", "channel")), strict=True))
    assert found == best
    assert ds["random"].values.tolist() == [0] * 4 + [1] * 4
    everyone = set(zip(*(ds[n].values.tolist() for n in ("layer", "kv_head", "channel")), strict=True))
    assert len(everyone) == 8


def test_without_a_score_all_samples_are_random():
    places = {(layer, head, at): 0.0 for layer in range(4) for head in range(2) for at in range(50)}
    for scores in (places, dict.fromkeys(places, float("nan"))):
        drawn, ranked = chosen(scores, 40, seed=0)
        assert ranked == 0
        assert len(set(drawn)) == 40
        assert len({place[:2] for place in drawn}) == 8, "not the first head's only"
    assert set(chosen(places, 1000, seed=0)[0]) == set(places)


def test_answers_may_be_named(lens):
    ds = ask(lens, THINK, Attribution(samples=2, steps=3, answers=(10, 20)))
    with torch.no_grad():
        text = torch.cat([tokens(1, S), tokens(1, G + 1, seed=5)[:, :3]], 1)
        logits = lens(text)[0, S:]
    np.testing.assert_allclose(ds["full"], logits[:, 10] - logits[:, 20], atol=1e-4)
