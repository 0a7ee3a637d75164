"""What holds of every task: found by its file, the same items twice, ids, results that are stored and summed up."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import interp
from interp.errors import InterpError, UnknownNameError
from interp.tasks import Asked, Task, available, made
from interp.tasks.asking import Asking
from interp.tasks.evaluating import drawn
from tests.models import shared as shared_text
from tests.models import tokenizer
from tests.tasks.answered import PUBLISHED, answered, seeing_lens

SAID = {"text": "", "new_token_ids": [], "notes": []}
SMALL = {"scenes": 3, "context": 20}


def small(name: str, folder: Path) -> Task:
    """The task, with few items; of the published files where it reads no others."""
    cls = available()[name]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    own = {key: value for key, value in SMALL.items() if key in fields}
    if name in PUBLISHED and not own:
        own = {"folder": str(PUBLISHED[name](folder))}
    return cls(**own)


@pytest.mark.parametrize("name", available())
def test_a_task_lies_in_the_file_of_its_name(name: str) -> None:
    cls = available()[name]
    assert cls.__module__ == f"interp.tasks.{name}"
    assert getattr(interp.tasks, cls.__name__) is cls
    assert cls.title
    assert cls.metrics
    assert all(units and said for units, said in cls.scores.values())
    assert cls().settings() == {field.name: field.default for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("name", available())
def test_items_are_the_same_twice(name: str, tmp_path: Path) -> None:
    task = small(name, tmp_path)
    items = list(task.items(0))
    assert items == list(task.items(0))
    assert len({item.id for item in items}) == len(items)
    assert all(item.prompt and item.expected is not None for item in items)
    assert all(set(task.by) <= set(item.facets) for item in items)
    assert not set(task.scores) & {facet for item in items for facet in item.facets}
    if "folder" not in task.settings() or task.settings()["folder"] is None:
        assert items != list(task.items(1))


@pytest.mark.parametrize("name", [name for name, cls in available().items() if issubclass(cls, Asked)])
def test_the_right_answer_is_right_and_the_result_is_stored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small(name, tmp_path)
    result = answered(task, lambda item: item.expected[0] if item.expected else "", monkeypatch)
    assert result.sizes["item"] == len(list(task.items(0)))
    if "correct" in task.scores:
        assert (result["correct"] == 1).all()
    rows = interp.tasks.summary(result)
    assert set(rows.measure) == set(task.metrics)
    assert interp.tasks.findings(result)
    loaded = interp.storage.load(interp.storage.save(result, tmp_path / "result.nc"))
    assert loaded.equals(result)
    assert interp.tasks.summary(loaded).equals(rows)
    assert interp.tasks.findings(loaded) == interp.tasks.findings(result)


@pytest.mark.parametrize("name", [name for name, cls in available().items() if issubclass(cls, Asked)])
@pytest.mark.parametrize("answer", ["", "\n", "no", "<script>\x00\u202e", "(" * 2000, "9" * 6000, "yes. no", "𝟡"])
def test_no_answer_breaks_a_task(name: str, answer: str, tmp_path: Path) -> None:
    task = small(name, tmp_path)
    assert isinstance(task, Asked)
    told = task.judge(task.items(0)[0], answer)
    assert set(told) == set(task.scores)
    assert all(np.isfinite(list(told.values())))


def test_a_number_of_items_is_drawn_and_nested(tmp_path: Path) -> None:
    task = made("pope:scenes=5,strategy=random")
    items = list(task.items(0))
    few, more = drawn(task, items, 7, 0), drawn(task, items, 12, 0)
    assert len(few) == 7
    assert {item.id for item in few} < {item.id for item in more}
    assert few != drawn(task, items, 7, 1)
    assert drawn(task, items, 1000, 0) == items
    pairs = interp.tasks.Mmvp(folder=str(PUBLISHED["mmvp"](tmp_path)))
    assert len(drawn(pairs, pairs.items(0), 1, 0)) == 2


def test_a_real_answer_and_its_account() -> None:
    lens = seeing_lens()
    result = interp.evaluate(lens, "what_is_at:scenes=2,questions=1", seed=1)
    item = made("what_is_at:scenes=2,questions=1").items(1)[0]
    tokens = lens.generate(item.prompt, max_new_tokens=16, chat=True, images=[item.images[0]()])
    assert str(result["answer"][0].item()) == tokens
    assert result.attrs["model"] == lens.cfg.model_name
    assert json.loads(result.attrs["task_settings"])["scenes"] == 2
    assert result.attrs["seed"] == 1
    assert {"interp", "transformers", "time"} <= set(result.attrs)
    blind = interp.evaluate(lens, "what_is_at:scenes=2,questions=1,blind=true", seed=1)
    assert blind.attrs["items_sha256"] == result.attrs["items_sha256"]
    assert list(blind["answer"].values) != list(result["answer"].values)


def test_an_intervention_acts_as_in_apply() -> None:
    lens, edit = seeing_lens(), interp.KnockOut(keys=(0, 1, 2, 3, 4, 5))
    task = made("what_is_at:scenes=2,questions=1")
    result = interp.evaluate(lens, task, edit)
    item = task.items(0)[0]
    with lens.apply(edit):
        told = lens.generate(item.prompt, max_new_tokens=16, chat=True, images=[item.images[0]()])
    assert str(result["answer"][0].item()) == told
    assert list(result["answer"].values) != list(interp.evaluate(lens, task)["answer"].values)
    assert json.loads(result.attrs["interventions"])[0]["name"] == "knock_out"
    assert not result["noted"].any()
    assert not lens.edits_in_force


@pytest.mark.parametrize("task", ["what_is_at:scenes=2,questions=1", "windowed_perplexity:context=20,scored=4"])
def test_what_changed_nothing_speaks(task: str) -> None:
    lens = seeing_lens() if "what" in task else interp.load(shared_text("llama"), tokenizer())
    with pytest.warns(UserWarning, match="in 2 of 2 items: streaming_llm dropped nothing"):
        result = interp.evaluate(lens, task, interp.StreamingLLM(budget=500), items=2)
    assert result["noted"].all()
    assert sum(json.loads(result.attrs["notes"]).values()) == 2
    assert "A warning was given in 2 of 2 items: streaming_llm dropped nothing" in interp.tasks.findings(result)[-1]


def test_a_block_around_it_is_recorded() -> None:
    lens = seeing_lens()
    with lens.apply(interp.KnockOut(keys=0)):
        result = interp.evaluate(lens, "what_is_at:scenes=1,questions=1")
    assert json.loads(result.attrs["interventions"])[0]["name"] == "knock_out"
    assert interp.evaluate(lens, "what_is_at:scenes=1,questions=1").attrs["interventions"] == "[]"


def test_what_was_asked_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same things are present in each of POPE's settings."""
    asked: list[str] = []
    monkeypatch.setattr(
        "interp.tasks.asking.generate",
        lambda lens, prompt, *a, **k: asked.append(prompt) or SAID | {"text": "no", "notes": ["x"]},
    )
    with pytest.warns(UserWarning, match="in 12 of 12 items: x"):
        interp.evaluate(seeing_lens(), "pope:scenes=1,objects=2")
    assert len(asked) == len({*asked}) <= 2 + 3 * 2


def test_prompts_without_a_template_have_a_place_for_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        "interp.tasks.asking.generate",
        lambda lens, prompt, *a, chat, **k: seen.append((prompt, chat)) or SAID,
    )
    asking = Asking(seeing_lens(), None, chat=False)
    asking.continued("w1 w2", (made("chair:scenes=1").items(0)[0].images[0],), 4)
    assert seen == [("<image>\nw1 w2", False)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": "pop"}, "did you mean 'pope'"),
        ({"task": "pope:strategy=rare"}, "strategy should be one of random, popular, adversarial, all"),
        ({"task": "pope:objects=9"}, "objects should be at most 5"),
        ({"task": "pope:scenes=0"}, "scenes should be at least 1"),
        ({"task": "pope", "items": 0}, "items should be at least 1"),
        ({"task": "pope", "items": 1.5}, "items should be"),
        ({"task": "pope", "seed": -1}, "seed should be at least 0"),
        ({"task": "pope", "intervention": "snapkv"}, "an intervention is one of interp.interventions"),
        ({"task": "windowed_perplexity:context=1000000"}, "no document has"),
        ({"task": "multiple_choice:choices=1"}, "choices should be 2 to 8"),
        ({"task": interp.tasks.Pope}, "there is no task"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(arguments: dict[str, object], said: str) -> None:
    with pytest.raises((InterpError, UnknownNameError), match=said):
        interp.evaluate(seeing_lens(), **arguments)


def test_a_question_without_its_place_is_refused() -> None:
    with pytest.raises(InterpError, match=r"ask should hold \{question\}"):
        interp.tasks.Pope(ask="Answer in a word.")


def test_a_model_of_text_sees_no_pictures() -> None:
    with pytest.raises(InterpError, match="reads text and no images"):
        interp.evaluate(interp.load(shared_text("llama"), tokenizer()), "pope:scenes=1", items=1)


def test_a_dataset_of_something_else_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = answered(made("counting:scenes=2"), lambda item: "3", monkeypatch)
    with pytest.raises(InterpError, match="no result of a task"):
        interp.tasks.summary(result.assign_attrs(task=3))
    with pytest.raises(UnknownNameError, match="there is no task 'count'"):
        interp.tasks.summary(result.assign_attrs(task="count"))
    with pytest.raises(InterpError, match="lacks correct"):
        interp.tasks.summary(result.drop_vars("correct"))
    with pytest.raises(InterpError, match="no facet 'colour'; it has number, of, wording"):
        interp.tasks.summary(result, by=["colour"])
    assert set(interp.tasks.summary(result, by=["wording"]).facet) <= {"", "wording"}


def test_a_note_is_told_once_for_all_items(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answered(made("counting:scenes=2"), lambda item: "3", monkeypatch)
