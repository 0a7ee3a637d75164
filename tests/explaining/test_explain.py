"""What `interp.explain` says, against slow independent recomputation on tiny models."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from interp.errors import InterpError, UnknownNameError
from interp.explaining import available, explain, findings
from interp.explaining.attribution import Attribution, Reader, channel_scores, chosen, token_scores
from interp.explaining.case import Case
from interp.explaining.masks import Masks, chance_overlap, jaccard
from interp.explaining.missed_mass import MissedMass
from interp.interventions.base import CachePolicy, Entry, Plan, Prompt
from interp.interventions.think import ThinK
from interp.lens import Lens
from interp.segments import joined
from interp.storage import load, save
from tests.models import shared, tokens

S, G = 40, 9
THINK = ThinK(ratio=0.5, window=8, recent=8)


@dataclass(frozen=True)
class Drop(CachePolicy):
    """Evicts every `every`-th token of the prompt, head h starting at h; at each step also the oldest one held.

    `late` waits for the first decoded token.

    With `merge` the value of an evicted token's right neighbour becomes the mean of both.
    """

    name: ClassVar[str] = "drop"
    stage: ClassVar[Literal["tokens", "channels"]] = "tokens"
    every: int = 4
    stepping: bool = False
    merge: bool = False
    late: bool = False

    def begin(self, prompt: Prompt) -> Plan:
        return DropPlan(self)


class DropPlan(Plan):
    def __init__(self, policy: Drop) -> None:
        self.policy = policy
        self.each_step = policy.stepping
        self.moment = "first_decode" if policy.late else "layer"

    def compress(self, layer, stored):
        whole = joined(stored.segments)
        heads, n = whole.keys.shape[1], len(whole)
        place = torch.arange(n)
        goes = torch.stack(
            [(place % self.policy.every == h % self.policy.every) & (place < S - 4) for h in range(heads)]
        )[None]
        count = int(goes[0].sum(-1).min())
        gone = torch.stack([g.nonzero()[:count, 0] for g in goes[0]])[None]
        stays = torch.stack([torch.tensor([i for i in range(n) if i not in row.tolist()]) for row in gone[0]])[None]
        left = whole.take(stays)
        if self.policy.merge:
            values = whole.values.clone()
            for h in range(heads):
                for i in gone[0, h].tolist():
                    values[0, h, i + 1] = (whole.values[0, h, i] + whole.values[0, h, i + 1]) / 2
            left = dataclasses.replace(whole, values=values).take(stays)
        self._note(layer, stored, gone)
        stored.segments = [left]

    def step(self, layer, stored):
        oldest = stored.segments[0].at()[:, :, :1]
        stored.segments[0] = stored.segments[0].take(
            torch.arange(1, len(stored.segments[0])).expand(*oldest.shape[:2], -1)
        )
        self._note(layer, stored, oldest.long())

    def _note(self, layer, stored, at):
        if self.ledger is not None:
            merged = {}
            if self.policy.merge:
                like = torch.ones(at.shape)
                merged = {
                    "target": at + 1,
                    "similarity": like / 2,
                    "threshold": torch.tensor([[0.4, 0.3]]).repeat(1, at.shape[1] // 2),
                    "merged": like > 0,
                }
            self.ledger.append(Entry(layer, stored.seen, at, at.float() + 0.5 + layer, **merged))


@pytest.fixture
def lens() -> Lens:
    return Lens(shared("llama"))


def case_of(lens, policy, prompt=None, steps=G) -> Case:
    return Case.of(lens, policy, tokens(1, S) if prompt is None else prompt, tokens(1, steps + 1, seed=5))


def ask(lens, policy, question, steps=G):
    (answer,) = explain(lens, policy, tokens(1, S), tokens(1, steps + 1, seed=5), question).values()
    return answer


POLICIES = {
    "think": THINK,
    "drop": Drop(),
    "stepping": Drop(stepping=True),
    "merging": Drop(merge=True),
    "late": Drop(late=True),
    "both": Drop() | THINK,
    "late both": Drop(late=True) | THINK,
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("model", ["llama", "gpt2", "gpt_oss"])
@pytest.mark.filterwarnings("ignore:.*sliding window")
def test_answers_describe_themselves_and_survive_a_file(model, name, tmp_path):
    lens = Lens(shared(model))
    answers = explain(lens, POLICIES[name], tokens(1, S), tokens(1, G + 1, seed=5))
    stages = {"think": {"channels"}, "both": {"tokens", "channels"}, "late both": {"tokens", "channels"}}.get(
        name, {"tokens"}
    )
    assert set(answers) == {n for n, q in available().items() if stages & set(q.stages)}
    for question, ds in answers.items():
        assert ds.attrs["title"]
        assert ds.attrs["description"]
        assert ds.attrs["intervention"].count("(") == len(stages)
        assert "torch" in ds.attrs
        for variable in ds.data_vars.values():
            assert variable.attrs["units"]
            assert variable.attrs["description"]
            if variable.dtype.kind == "f" and variable.name not in ("score", "score_share", "spearman"):
                absent = ("similarity", "threshold") if name != "merging" else ()
                assert variable.name in absent or np.isfinite(variable).all(), variable.name
        loaded = load(save(ds, tmp_path / f"{question}.nc"))
        assert set(loaded.variables) == set(ds.variables)
    said = findings(answers)
    assert len(said) >= len(answers)
    assert not any("nan" in sentence for sentence in said)


# ledger


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


# missed mass


def test_missed_mass_is_the_patterns_mass_at_evicted_positions(lens):
    ds = ask(lens, Drop(), "missed_mass")
    text = torch.cat([tokens(1, S), tokens(1, G + 1, seed=5)[:, :-1]], 1)
    _, cache = lens.run_with_cache(text, names_filter=lambda n: n.endswith("hook_pattern"))
    for layer in range(3):
        pattern = cache["pattern", layer][0, :, S:].numpy()  # [head, step, token]
        for head in range(8):
            kv = head // 4
            gone = [i for i in range(S - 4) if i % 4 == kv]
            missed = pattern[head][:, gone].sum(-1)
            np.testing.assert_allclose(ds["missed_mass"][layer, head], missed, atol=1e-5)
            for step in range(G):
                row = np.sort(pattern[head, step, : S + step + 1])[::-1]
                least = row[S + step + 1 - len(gone) :].sum()
                top = int(np.ceil(0.2 * (S + step + 1) - 1e-9))
                np.testing.assert_allclose(ds["least_missed"][layer, head, step], least, atol=1e-5)
                np.testing.assert_allclose(ds["top_mass"][layer, head, step], row[:top].sum(), atol=1e-5)
                best = np.argsort(-pattern[head, step])[:top]
                recall = np.mean([i not in gone for i in best])
                np.testing.assert_allclose(ds["top_recall"][layer, head, step], recall, atol=1e-6)
    assert (ds["least_missed"] <= ds["missed_mass"] + 1e-6).all()


def test_tokens_evicted_at_a_step_are_missed_only_from_then_on(lens):
    case = case_of(lens, Drop(every=S, stepping=True))
    ds = MissedMass().ask(case)
    pattern = torch.stack([case.full.events[layer].pattern()[0] for layer in range(3)]).numpy()
    # the prompt's first eviction takes token h from head h; step t then takes the oldest that is left
    for head in range(8):
        kv = head // 4
        order = [kv] + [i for i in range(S) if i != kv]
        for step in range(G):
            expected = pattern[:, head, step, order[: step + 1]].sum(-1)
            np.testing.assert_allclose(ds["missed_mass"][:, head, step], expected, atol=1e-5)
    assert "logit_error" not in ds
    assert "acts at every step" in ds.attrs["absent"]


@pytest.mark.filterwarnings("ignore:.*dropped nothing")
@pytest.mark.parametrize("policy", [Drop(every=1000), ThinK(ratio=0.0, window=8), Drop(every=1000, stepping=False)])
def test_a_policy_that_drops_nothing_misses_and_moves_nothing(lens, policy):
    if isinstance(policy, Drop):
        policy = Nothing(policy.every)
    why = explain(lens, policy, tokens(1, S), tokens(1, G + 1, seed=5), ["missed_mass", "perturbation"])
    assert (why["missed_mass"]["missed_mass"] == 0).all()
    assert (why["missed_mass"]["least_missed"] == 0).all()
    assert (why["missed_mass"]["top_recall"] == 1).all()
    assert (why["missed_mass"]["logit_error"] == 0).all()
    assert why["missed_mass"]["output_error"].max() < 1e-5
    for name in ("head_error", "layer_error", "attn_out_error", "nll_difference", "kl"):
        assert (why["perturbation"][name] == 0).all(), name


@dataclass(frozen=True)
class Nothing(Drop):
    """Evicts nothing."""

    name: ClassVar[str] = "nothing"

    def begin(self, prompt: Prompt) -> Plan:
        return NothingPlan()


class NothingPlan(Plan):
    def compress(self, layer, stored):
        pass


def test_direct_errors_of_channels_against_zeroed_keys(lens):
    case = case_of(lens, THINK)
    ds = MissedMass().ask(case)
    for layer in range(3):
        event = case.full.events[layer]
        dense = case.policy.rest.stored[layer].keys  # zeros where a channel was dropped
        keys = torch.cat([dense, event.k[:, :, S:]], 2).repeat_interleave(4, 1)
        true = event.k.repeat_interleave(4, 1)
        causal = torch.ones(G, S + G, dtype=torch.bool).tril(S)
        scores, pruned = (event.q @ k.mT for k in (true, keys))
        error = ((scores - pruned) * causal).norm(dim=-1) / (scores * causal).norm(dim=-1)
        np.testing.assert_allclose(ds["logit_error"][layer], error[0], rtol=1e-4)
        weights = (pruned * event.scale).masked_fill(~causal, -torch.inf).softmax(-1)
        z = weights @ event.v.repeat_interleave(4, 1)
        full = (scores * event.scale).masked_fill(~causal, -torch.inf).softmax(-1) @ event.v.repeat_interleave(4, 1)
        np.testing.assert_allclose(
            ds["output_error"][layer], ((z - full).norm(dim=-1) / full.norm(dim=-1))[0], rtol=1e-4
        )


# perturbation


@pytest.mark.parametrize("policy", [THINK, Drop(), Drop(stepping=True)])
def test_perturbation_agrees_with_score_and_with_hooks(lens, policy):
    ds = ask(lens, policy, "perturbation")
    prompt, rest = tokens(1, S), tokens(1, G + 1, seed=5)
    np.testing.assert_allclose(ds["nll_full"], lens.score(prompt, rest)[0, 1:], atol=1e-5)
    with lens.apply(policy):
        np.testing.assert_allclose(ds["nll_policy"], lens.score(prompt, rest, chunk=1)[0, 1:], atol=1e-5)
    seen = {"full": [], "policy": []}
    for name in seen:
        with torch.no_grad(), nullcontext() if name == "full" else lens.apply(policy):
            lens(prompt, use_cache=True)
            cache = lens.last_cache
            for token in rest[0, :-1]:
                hook = ("blocks.1.attn.hook_z", lambda z, hook, name=name: seen[name].append(z[0, 0].clone()))
                lens.run_with_hooks(token.view(1, 1), fwd_hooks=[hook], past_key_values=cache, use_cache=True)
    full, other = (torch.stack(seen[name]) for name in ("full", "policy"))
    expected = (full - other).norm(dim=-1) / full.norm(dim=-1)
    np.testing.assert_allclose(ds["head_error"][1].T, expected, rtol=1e-3, atol=1e-5)
    whole = (full - other).flatten(1).norm(dim=-1) / full.flatten(1).norm(dim=-1)
    np.testing.assert_allclose(ds["layer_error"][1], whole, rtol=1e-3, atol=1e-5)


# masks


def test_jaccard_and_its_expectation_by_chance():
    a = torch.tensor([True, True, False, False])
    assert jaccard(a, a) == 1
    assert jaccard(a, ~a) == 0
    assert jaccard(a, torch.tensor([True, False, True, False])) == pytest.approx(1 / 3)
    rng = np.random.default_rng(0)
    drawn = torch.from_numpy(rng.uniform(size=(2, 20_000, 16)).argsort(-1) < 5)
    assert jaccard(*drawn).mean() == pytest.approx(chance_overlap(16, 5), abs=0.005)


def test_masks_are_the_stored_channels_and_identical_prompts_agree(lens):
    ds = ask(lens, THINK, Masks(other_prompts=(tokens(1, S), tokens(1, S, seed=9)), checkpoints=(0, 3, G)))
    with lens.apply(THINK):
        lens(tokens(1, S), use_cache=True)
    for layer, stored in lens.last_cache.stored.items():
        kept = [np.flatnonzero(ds["kept"][layer, head]).tolist() for head in range(2)]
        assert kept == stored.segments[0].channels[0].tolist()
        a, b = map(set, kept)
        assert ds["overlap_heads"][layer, 0, 1] == pytest.approx(len(a & b) / len(a | b))
    assert (ds["overlap_prompts"][..., 0, 1] == 1).all()
    assert (ds["overlap_prompts"][..., 0, 2] < 1).any()
    assert (ds["drift"].sel(checkpoint=0) == 1).all(), "chosen again at once, the same policy chooses the same"


@pytest.mark.parametrize("policy", [THINK, Drop() | THINK])
def test_drift_is_what_the_policy_chooses_for_the_longer_prompt(lens, policy):
    ds = ask(lens, policy, Masks(checkpoints=(4, G)))
    text = torch.cat([tokens(1, S), tokens(1, G + 1, seed=5)], 1)
    for checkpoint in (4, G):
        with lens.apply(policy):
            lens(text[:, : S + checkpoint], use_cache=True)
        for layer, stored in lens.last_cache.stored.items():
            later = next(s for s in stored.segments if s.channels is not None).channels[0]
            for head in range(2):
                a, b = set(np.flatnonzero(ds["kept"][layer, head])), set(later[head].tolist())
                assert ds["drift"].sel(checkpoint=checkpoint)[layer, head] == pytest.approx(len(a & b) / len(a | b))


# attribution


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


def test_one_channel_put_back_against_a_hook_on_dense_keys(lens):
    """The same effect from the full model whose keys are zeroed in all dropped channels but one."""
    ds = ask(lens, THINK, Attribution(samples=6, steps=1, batch=4))
    case = case_of(lens, THINK)
    kept = {i: s.segments[0].channels[0].long() for i, s in case.policy.rest.stored.items()}
    answer, rival = int(case.continuation[0, 1]), ds["rival_text"].item()
    rival = int(rival.strip("<>"))

    @torch.no_grad()
    def difference(back: tuple[int, int, int] | None) -> float:
        lens(case.prompt, use_cache=True)
        cache = lens.last_cache
        for layer in range(3):
            for head in range(2):
                stays = kept[layer][head].tolist() + ([back[2]] if back and back[:2] == (layer, head) else [])
                drop = [c for c in range(8) if c not in stays]
                cache.layers[layer].keys[0, head, : S - THINK.recent, drop] = 0.0
        logits = lens(case.fed[:, :1], past_key_values=cache, use_cache=True)[0, -1]
        return float(logits[answer] - logits[rival])

    pruned = difference(None)
    assert ds["pruned"].item() == pytest.approx(pruned, abs=1e-4)
    for i in range(6):
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


# refusals


@pytest.mark.parametrize(
    ("policy", "question", "message"),
    [
        (THINK, "ledger", "ledger asks about policies that decide about tokens"),
        (Drop(), "masks", "masks asks about policies that decide about channels"),
        (Drop(), ["missed_mass", MissedMass(top=0.1)], "missed_mass is asked for twice"),
        (Drop(), [], "no question was asked"),
        (THINK, Masks(checkpoints=(50,)), "checkpoint 50 lies outside the 9 tokens"),
        (THINK, Masks(of="values"), "stores all channels of values"),
        (THINK, Attribution(answers=(500, 1)), "there is no token 500; the vocabulary has 128"),
    ],
)
def test_questions_without_an_answer_are_refused(lens, policy, question, message):
    with pytest.raises(InterpError, match=message):
        explain(lens, policy, tokens(1, S), tokens(1, G + 1, seed=5), question)


def test_bad_input_is_refused_before_anything_runs(lens, monkeypatch):
    monkeypatch.setattr(lens.model, "forward", None)
    with pytest.raises(UnknownNameError, match="did you mean 'perturbation'"):
        explain(lens, THINK, tokens(1, S), tokens(1, 5), "pertubation")
    with pytest.raises(InterpError, match="at least 2 tokens"):
        explain(lens, THINK, tokens(1, S), tokens(1, 1))
    with pytest.raises(InterpError, match="one text at a time; these are tokens of 2"):
        explain(lens, THINK, tokens(2, S), tokens(1, 5))
    with pytest.raises(InterpError, match="window=64 is longer than the prompt"):
        explain(lens, ThinK(window=64), tokens(1, S), tokens(1, 5))
    with pytest.raises(InterpError, match="exceed the context"):
        explain(lens, THINK, tokens(1, 510), tokens(1, 5))
    for wrong in ({"samples": 0}, {"of": "heads"}):
        with pytest.raises(InterpError, match="attribution"):
            Attribution(**wrong)


def test_masks_of_value_channels(lens):
    policy = ThinK(ratio=0.0, value_ratio=0.25, window=8, recent=8)
    ds = ask(lens, policy, "masks")
    assert ds.attrs["of"] == "values"
    assert (ds["kept"].sum("channel") == 6).all()
