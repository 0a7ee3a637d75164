"""What `interp.explain` answers as a whole, and what it refuses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from interp.errors import InterpError, UnknownNameError
from interp.explaining import NothingToSay, available, explain, findings, resolve
from interp.explaining.attribution import Attribution
from interp.explaining.masks import Masks
from interp.explaining.missed_mass import MissedMass
from interp.interventions.base import parts
from interp.interventions.policies.d2o import D2O
from interp.interventions.policies.h2o import H2O
from interp.interventions.policies.recall import Recall
from interp.interventions.policies.think import ThinK
from interp.lens.lens import Lens
from interp.results.storage import load, save
from tests.explaining.cases import THINK, Drop, G, S
from tests.models import shared, tokens

POLICIES = {
    "think": THINK,
    "drop": Drop(),
    "stepping": Drop(stepping=True),
    "merging": Drop(merge=True),
    "late": Drop(late=True),
    "both": Drop() | THINK,
    "late both": Drop(late=True) | THINK,
    "values": ThinK(ratio=0.0, value_ratio=0.5, window=8, recent=8),
    "summaries": Recall(budget=0.5, sinks=2),
    "query heads": D2O(budget=0.3, sinks=2, skip=(), granularity="query_head"),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("model", ["llama", "gpt2", "gpt_oss"])
@pytest.mark.filterwarnings("ignore:.*sliding window")
def test_answers_describe_themselves_and_survive_a_file(model, name, tmp_path):
    lens = Lens(shared(model))
    answers = explain(lens, POLICIES[name], tokens(1, S), tokens(1, G + 1, seed=5))
    stages = {member.stage for member in parts(POLICIES[name])}
    assert set(answers) == {n for n, q in available().items() if stages & set(q.stages)}
    for question, ds in answers.items():
        assert ds.attrs["title"]
        assert ds.attrs["description"]
        assert ds.attrs["intervention"] == " | ".join(map(repr, parts(POLICIES[name])))
        assert "torch" in ds.attrs
        for variable in ds.data_vars.values():
            assert variable.attrs["units"]
            assert variable.attrs["description"]
            if variable.dtype.kind == "f" and variable.name not in ("score", "score_share", "spearman"):
                absent = () if name in ("merging", "query heads") else ("similarity", "threshold")
                assert variable.name in absent or np.isfinite(variable).all(), variable.name
        loaded = load(save(ds, tmp_path / f"{question}.nc"))
        assert set(loaded.variables) == set(ds.variables)
    said = findings(answers)
    assert len(said) >= len(answers)
    assert not any("nan" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("policy", "silent"),
    [
        (ThinK(ratio=0.0, window=8, recent=8), {"masks", "attribution"}),
        (H2O(budget=1.0), {"attribution"}),
        (ThinK(ratio=0.0, value_ratio=0.5, window=8, recent=8), set()),
    ],
)
@pytest.mark.filterwarnings("ignore:.*dropped nothing")
def test_a_question_that_has_nothing_to_say_is_left_out_unless_it_is_asked_by_name(lens, policy, silent):
    prompt, rest = tokens(1, S), tokens(1, G + 1, seed=5)
    apply = {name for name, question in available().items() if question().applies(policy)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        why = explain(lens, policy, prompt, rest)
    said = [str(w.message) for w in caught if str(w.message).startswith("left out of the explanation: ")]
    assert set(why) == apply - silent
    assert len(said) == bool(silent)
    for name in silent:
        assert f"{name}: " in said[0]
        with pytest.raises(NothingToSay, match=name):
            explain(lens, policy, prompt, rest, name)


def test_questions_take_settings_as_text():
    assert resolve(["attribution:samples=5", "masks"], THINK) == [Attribution(samples=5), Masks()]
    with pytest.raises(UnknownNameError, match="attribution has no setting 'sample'; did you mean 'samples'"):
        resolve("attribution:sample=5", THINK)


@pytest.mark.parametrize(
    ("policy", "question", "message"),
    [
        (THINK, "ledger", "ledger asks about policies that decide about tokens"),
        (Drop(), "masks", "masks asks about policies that decide about channels"),
        (Drop(), ["missed_mass", MissedMass(top=0.1)], "missed_mass is asked for twice"),
        (Drop(), [], "no question was asked"),
        (THINK, Masks(checkpoints=(50,)), "checkpoint 50 lies outside the 9 tokens"),
        (THINK, Masks(of="values"), "stores all channels of values"),
        (THINK, Attribution(of="value_channels"), "the policy dropped no value channels of the prompt"),
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
    with pytest.raises(InterpError, match="has no room for 9 sinks"):
        explain(lens, H2O(budget=3, sinks=9), tokens(1, S), tokens(1, 5))
    with pytest.raises(InterpError, match="exceed the context"):
        explain(lens, THINK, tokens(1, 510), tokens(1, 5))
    for wrong in ({"samples": 0}, {"of": "heads"}):
        with pytest.raises(InterpError, match="attribution"):
            Attribution(**wrong)
