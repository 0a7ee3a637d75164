"""The page Intervene: methods of the library with forms for their settings, and what they do to a text."""

from __future__ import annotations

import json

import numpy as np
import pytest

import interp
from interp.figures._text import escape
from tests.explorer.opening import TOKENS, charts, opened, sentences

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def lens():
    return interp.load("demo")


def written(app) -> list[list[str]]:
    """The tokens of both texts as the figure shows them."""
    return [bar["text"] for bar in charts(app)[0]["data"] if bar["type"] == "bar"]


def continued(lens, intervention):
    prompt = lens.tokenizer.decode(lens.to_tokens(interp.subjects.demo_text())[0, : int(TOKENS)])
    return interp.side_by_side(lens, prompt, intervention, 4)


def test_attention_edits_are_found_and_take_effect(lens):
    settings = {"knock_out keys": "[0,3]", "knock_out layers": "[2,5]", "sink_removal remove_fraction": "0.9"}
    app = opened("intervene", **{"with": ["knock_out", "sink_removal"], **settings})
    assert "Questions are about cache policies" in sentences(app), "nothing else is wrong"
    edits = interp.KnockOut(keys=(0, 3), layers=(2, 5)) | interp.SinkRemoval(remove_fraction=0.9)
    ds = continued(lens, edits)
    assert written(app) == [[escape(text) for text in side] for side in ds["token_text"].values]
    shown = app.session_state["view"].data["side_by_side"]
    np.testing.assert_allclose(shown["shift"], ds["shift"], atol=1e-5)
    assert (np.abs(shown["shift"]) > 1e-3).any()
    assert json.loads(shown.attrs["interventions"]) == json.loads(ds.attrs["interventions"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("knock_out keys", "first", "keys"), ("knock_out keys", "[99999]", "beyond"), ("knock_out layers", "77", "77")],
)
def test_a_setting_that_makes_no_sense_is_a_sentence(key, value, said):
    app = opened("intervene", **{"with": "knock_out", key: value})
    assert said in " ".join(element.value for element in app.error)
    assert not app.exception


def test_a_value_that_makes_no_sense_is_a_sentence():
    app = opened("intervene", **{"with": "think", "think ratio": "1.5"})
    assert "ratio should be" in sentences(app)


@pytest.mark.parametrize("chosen", [[], ["h2o", "snapkv"]])
def test_interventions_that_do_not_go_together(chosen):
    app = opened("intervene", **({"with": chosen} if chosen else {"from_text": "false"}))
    app.multiselect(key="with").set_value(chosen).run()
    assert ("at least one" if not chosen else "both decide") in sentences(app)


def test_an_empty_prompt_is_a_sentence():
    app = opened("intervene", from_text="false")
    assert "prompt is empty" in sentences(app)


def test_questions_are_answered_with_a_table_of_what_was_merged():
    app = opened("intervene", **{"with": "d2o", "ask": "true"})
    assert not app.error
    (ledger,) = (
        frame.value for frame in app.dataframe if len(frame.value) == 0 or "eviction" in frame.value.index.names
    )
    assert len(ledger)


def test_a_prompt_that_would_not_fit_is_refused(monkeypatch, lens):
    import psutil

    app = opened("intervene", **{"with": "knorm"})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1024})())
    app.toggle(key="from_text").set_value(False).run()
    app.text_area(key="prompt").set_value("Eleven herons stand in a shallow river.").run()
    assert "choose fewer tokens" in sentences(app)


def test_a_prompt_too_short_for_a_policy_is_read_and_said_to_lose_nothing():
    app = opened("intervene", **{"with": "think", "text": "typed", "typed": "x", "tokens": "2"})
    assert not app.exception
    assert "dropped nothing" in sentences(app)


def test_a_prompt_of_too_many_tokens_is_a_sentence():
    app = opened("intervene", **{"with": "knorm", "from_text": "false", "prompt": "\u2603" * 8000})
    assert "more tokens than the context of 8192" in sentences(app)


def test_every_sample_that_was_put_back_is_listed(lens):
    app = opened("intervene", **{"with": "think", "ask": "true", "questions": ["attribution"], "steps": "6"})
    assert not app.error, [e.value for e in app.error]
    listed = app.dataframe[-1].value
    answer = app.session_state["view"].data["attribution"]
    assert len(listed) == answer.sizes["sample"] > 0
    np.testing.assert_array_equal(listed["mean_effect"], answer["mean_effect"])
    assert {"score", "layer", "kv_head", "channel"} <= set(listed.columns)
