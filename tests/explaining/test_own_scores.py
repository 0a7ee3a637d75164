"""A policy says what it thought: `explain` shows the scores that it wrote down, and of one that wrote none, none."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

import interp
from interp.errors import InterpError
from interp.explaining import explain, findings
from interp.explaining.attribution import Attribution
from interp.explaining.scores import NOT_RECORDED, channel_scores, token_scores, value_channel_scores
from interp.interventions.base import CachePolicy, ChannelEntry, Plan, Prompt
from interp.interventions.policies.think import ThinK
from tests.explaining.cases import THINK, Drop, DropPlan, G, S, case_of
from tests.models import tokens

D = 8
OF = {"keys": channel_scores, "values": value_channel_scores}


@dataclass(frozen=True)
class LastHalf(CachePolicy):
    """Keeps the last half of all channels, of keys or of values, of all tokens but the newest."""

    name: ClassVar[str] = "last_half"
    stage: ClassVar[Literal["tokens", "channels"]] = "channels"
    of: Literal["keys", "values"] = "keys"
    writes: bool = False

    def begin(self, prompt: Prompt) -> Plan:
        return LastHalfPlan(self)


class LastHalfPlan(Plan):
    def __init__(self, policy: LastHalf) -> None:
        self.policy = policy

    def compress(self, layer, stored):
        old = stored.protect(recent=8)
        kept = torch.arange(D // 2, D).expand(*old.keys.shape[:2], -1)
        stored.pack(kept) if self.policy.of == "keys" else stored.pack(value_channels=kept)
        if self.policy.writes and self.channel_ledger is not None:
            heads = old.keys.shape[1]
            score = (torch.arange(heads)[:, None] * 100 + torch.arange(D) + 1000 * layer).float()[None]
            self.channel_ledger.append(ChannelEntry(layer, self.policy.of, score, "its place, and so on"))


def answer(lens, policy, **how):
    return explain(lens, policy, tokens(1, S), tokens(1, G + 1, seed=5), Attribution(samples=12, steps=2, **how))[
        "attribution"
    ]


@dataclass(frozen=True)
class Silent(Drop):
    """Evicts and writes nothing down."""

    name: ClassVar[str] = "silent"

    def begin(self, prompt):
        plan = DropPlan(self)
        plan._note = lambda *_: None
        return plan


@dataclass(frozen=True)
class Unranked(Drop):
    """Writes down what it evicts, but ranks by nothing."""

    name: ClassVar[str] = "unranked"

    def begin(self, prompt):
        plan, note = DropPlan(self), DropPlan._note

        def unranked(*about):
            note(plan, *about)
            if plan.ledger is not None:
                plan.ledger[-1] = dataclasses.replace(plan.ledger[-1], score=None)

        plan._note = unranked
        return plan


@pytest.mark.parametrize(
    "policy",
    [
        LastHalf(),
        LastHalf(of="values"),
        Drop() | LastHalf(),
        dataclasses.replace(THINK, ratio=0.0) | Silent(),
        Silent(),
        Silent(stepping=True),
        Unranked(),
    ],
    ids=repr,
)
def test_who_wrote_nothing_down_is_compared_with_nothing(lens, policy):
    ds = answer(lens, policy)
    assert ds.attrs["own_score"] == NOT_RECORDED
    assert NOT_RECORDED in ds["score"].attrs["description"]
    for name in ("score", "score_share", "spearman"):
        assert np.isnan(ds[name]).all()
    assert (ds["random"] == 1).all()
    said = " ".join(findings({"attribution": ds}))
    assert "recorded no score" in said
    assert "correlation" not in said
    interp.figures.cache_attribution(ds)


@pytest.mark.parametrize("of", ["keys", "values"])
@pytest.mark.parametrize("tokens_policy", [None, Drop()])
def test_what_was_written_down_is_what_is_shown(lens, of, tokens_policy):
    own = LastHalf(of=of, writes=True)
    policy = own if tokens_policy is None else tokens_policy | own
    scores = OF[of](case_of(lens, policy))
    assert len(scores) == 3 * 2 * D // 2
    assert all(score == 1000 * layer + 100 * head + channel for (layer, head, channel), score in scores.items())
    ds = answer(lens, policy, of={"keys": "channels", "values": "value_channels"}[of])
    assert ds.attrs["own_score"] == "its place, and so on"
    wanted = 1000 * ds["layer"] + 100 * ds["kv_head"] + ds["channel"]
    np.testing.assert_array_equal(ds["score"], wanted)
    assert np.isfinite(ds["spearman"].sel(against="score")).all()
    assert "recorded no score" not in " ".join(findings({"attribution": ds}))


def queries_keys_values(lens) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each layer `[head, token, d]`, in fp64, from the model's own hook points."""
    _, seen = lens.run_with_cache(tokens(1, S), names_filter=lambda n: n.endswith(("rot_q", "rot_k", "hook_v")))
    return {
        i: tuple(seen[name, i][0].transpose(0, 1).double().numpy() for name in ("rot_q", "rot_k", "v"))
        for i in range(3)
    }


def stored_heads(x: np.ndarray, k: np.ndarray, granularity: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(queries that read a stored head `[row, d]`, its keys `[token, d]`) of every stored head."""
    group = len(x) // len(k)
    if granularity == "query_head":
        return list(x), [k[h // group] for h in range(len(x))]
    return [np.concatenate(x[h * group : (h + 1) * group]) for h in range(len(k))], list(k)


def by_think(q, q_all, k, n, policy):
    return (q**2).mean(0) * (k**2).mean(0)


def by_key_norm(q, q_all, k, n, policy):
    return (k**2).mean(0)


def by_gram(q, q_all, k, n, policy):
    """What each dropped channel adds to ‖Q K'ᵀ - Q Kᵀ‖², a mean over tokens, from the logits themselves."""
    loss = lambda gone: ((q[:, gone] @ k[:, gone].T) ** 2).sum(0).mean() if gone else 0.0  # noqa: E731
    gone, score = [], np.zeros(D)
    for _ in range(n):
        added = {j: loss([*gone, j]) - loss(gone) for j in range(D) if j not in gone}
        worst = min(added, key=added.__getitem__)
        score[worst] = added[worst]
        gone.append(worst)
    for j in set(range(D)) - set(gone):
        score[j] = loss([*gone, j]) - loss(gone)
    return score


def by_surgeon(q, q_all, k, n, policy):
    """Each step anew: regress the dropped channels on those left, hand their keys over, and see what is not known."""
    gram = q_all.T @ q_all
    gram = gram + policy.ridge * np.diag(gram).mean() * np.eye(D)
    gone, score = [], np.zeros(D)
    for step in range(n + 1):
        left = [j for j in range(D) if j not in gone]
        inverse = np.linalg.inv(gram[np.ix_(left, left)])
        keys = k[:, left] + (k[:, gone] @ (inverse @ gram[np.ix_(left, gone)]).T if gone else 0)
        cost = dict(zip(left, (keys**2).mean(0) / np.diag(inverse), strict=True))
        if step == n:
            for j in left:
                score[j] = cost[j]
            break
        worst = min(cost, key=cost.__getitem__)
        score[worst] = cost[worst]
        gone.append(worst)
    return score


SELECTORS = {"think": by_think, "key_norm": by_key_norm, "gram": by_gram, "surgeon": by_surgeon}


@pytest.mark.parametrize("granularity", ["kv_head", "query_head"])
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("score_tokens", ["all", "prunable"])
def test_every_selectors_score_by_hand(lens, selector, granularity, score_tokens):
    policy = dataclasses.replace(THINK, selector=selector, granularity=granularity, score_tokens=score_tokens)
    case = case_of(lens, policy)
    found = channel_scores(case)
    all_of_it = {entry.layer: entry.score[0].numpy() for entry in case.policy.channel_ledger}
    for layer, (q, k, _) in queries_keys_values(lens).items():
        judged = k if score_tokens == "all" else k[:, : S - policy.recent]
        rows, keys = stored_heads(q[:, -policy.window :], judged, granularity)
        every, _ = stored_heads(q, judged, granularity)
        for head, (some, whole, own) in enumerate(zip(rows, every, keys, strict=True)):
            wanted = SELECTORS[selector](some, whole, own, D // 2, policy)
            np.testing.assert_allclose(all_of_it[layer][head], wanted, rtol=2e-4, atol=1e-5 * abs(wanted).max())
            dropped = [channel for i, h, channel in found if (i, h) == (layer, head)]
            assert len(dropped) == D // 2
            for channel in dropped:
                assert found[layer, head, channel] == np.float32(all_of_it[layer][head, channel])
    ds = answer(lens, policy)
    assert ds.attrs["own_score"] == case.policy.channel_ledger[0].about
    assert ("mean q²" in ds.attrs["own_score"]) == (selector == "think"), "no other selector ranks by q²k²"
    for i in range(ds.sizes["sample"]):
        place = tuple(int(ds[name][i]) for name in ("layer", "kv_head", "channel"))
        assert float(ds["score"][i]) == pytest.approx(found[place])


def test_a_random_selectors_score_is_the_draw_that_it_ranked_by(lens):
    policy = dataclasses.replace(THINK, selector="random", seed=3)
    case = case_of(lens, policy)
    found = channel_scores(case)
    for layer in range(3):
        draw = np.random.default_rng((3, layer)).random((1, 2, D), np.float32)[0]
        for head in range(2):
            dropped = {channel: s for (i, h, channel), s in found.items() if (i, h) == (layer, head)}
            assert sorted(dropped) == sorted(np.argsort(draw[head], kind="stable")[: D // 2].tolist())
            assert dropped == {channel: float(draw[head, channel]) for channel in dropped}
    assert answer(lens, policy).attrs["own_score"] == "a random number"


@pytest.mark.parametrize("granularity", ["kv_head", "query_head"])
@pytest.mark.parametrize("value_score", ["magnitude", "attn", "attn_wo"])
def test_every_value_score_by_hand(lens, value_score, granularity):
    policy = ThinK(ratio=0.0, value_ratio=0.5, window=8, recent=8, value_score=value_score, granularity=granularity)
    found = value_channel_scores(case_of(lens, policy))
    _, seen = lens.run_with_cache(tokens(1, S), names_filter=lambda n: n.endswith("pattern"))
    for layer, (_, _, v) in queries_keys_values(lens).items():
        pattern = seen["pattern", layer][0, :, -8:].double().numpy()
        wide = v.repeat(4, 0)
        read = ((pattern @ wide) ** 2).sum(1)
        if value_score == "attn_wo":
            weight = lens.model.model.layers[layer].self_attn.o_proj.weight.detach().double().numpy()
            read = read * (weight.reshape(64, 8, D) ** 2).sum(0)
        wanted = (wide**2).mean(1) if value_score == "magnitude" else read
        if granularity == "kv_head":
            wanted = (v**2).mean(1) if value_score == "magnitude" else wanted.reshape(2, 4, D).sum(1)
        for (i, head, channel), score in found.items():
            if i == layer:
                assert score == pytest.approx(wanted[head, channel], rel=1e-4)
    assert len(found) == 3 * len(wanted) * D // 2


def test_nothing_is_written_down_unless_somebody_keeps_account(lens):
    for policy, kept in ((THINK, None), (THINK, [])):
        with lens.apply(policy, ledger=kept is not None):
            lens(tokens(1, S), use_cache=True)
        written = lens.last_cache.keeper.channel_ledger
        assert written is None if kept is None else [entry.layer for entry in written] == [0, 1, 2]
    lens.last_cache.reset()
    assert written == []


def test_scores_of_another_shape_are_refused(lens):
    case = case_of(lens, LastHalf(writes=True))
    case.policy.channel_ledger[0] = dataclasses.replace(case.policy.channel_ledger[0], score=torch.zeros(1, 8, D))
    with pytest.raises(InterpError, match=r"scores \[8, 8\] for channels of keys in layer 0, which has 2 stored heads"):
        channel_scores(case)


def test_tokens_that_were_evicted_without_a_word_have_no_score(lens):
    scores = token_scores(case_of(lens, Silent()))
    assert len(scores) == 3 * 2 * 9
    assert all(math.isnan(score) for score in scores.values())
