"""Questions about scenes of emoji: what is right, how numbers and letters are read, and where a picture comes from."""

from __future__ import annotations

import numpy as np
import pytest

import interp
from interp.subjects.emoji.questions import PLACES
from interp.tasks import made
from interp.tasks._answers import chosen, plain
from interp.tasks.looking import look
from tests.tasks.answered import answered, estimates


@pytest.mark.parametrize("name", ["what_is_at", "counting", "spatial"])
def test_there_are_so_many_scenes(name: str) -> None:
    items = made(f"{name}:scenes=7,questions=2").items(0)
    assert len({item.cluster for item in items}) == 7
    assert all("held-out" in item.cluster for item in items)
    assert {int(item.facets["wording"]) % 4 for item in items} == {3}, "wordings that training never had"
    other = made(f"{name}:scenes=7,held_out=false").items(0)
    assert not {int(item.facets["wording"]) % 4 for item in other} & {3}


def test_places_and_directions_are_facets() -> None:
    for item in made("what_is_at:scenes=20").items(0):
        assert item.facets["place"] in PLACES
        assert f"{item.facets['place']}?" in item.prompt or f"{item.facets['place']} " in item.prompt
    for item in made("spatial:scenes=20").items(0):
        assert item.facets["direction"] in item.prompt


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [("3", (1, 1, 0)), ("three", (1, 1, 0)), ("Three.", (1, 1, 0)), ("5", (0, 1, 2)), ("none", (0, 0, 0)),
     ("3 things", (0, 0, 0)), ("³", (0, 0, 0)), ("-3", (0, 0, 0)), ("1" * 5000, (0, 0, 0))],
)  # fmt: skip
def test_numbers_are_read(answer: str, numbers: tuple[int, int, int]) -> None:
    item = interp.tasks.Item("a", "b", "How many?", ("3",))
    told = interp.tasks.Counting().judge(item, answer)
    assert (told["correct"], told["counted"], told["off"]) == numbers


def test_distance_is_of_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made("counting:scenes=4,questions=1")
    right = {item.id: int(item.expected[0]) for item in task.items(0)}
    first, second, *_ = right
    say = {name: str(number) for name, number in right.items()} | {first: str(right[first] + 3), second: "many"}
    found = estimates(answered(task, lambda item: say[item.id], monkeypatch))
    assert found == {"accuracy": 0.5, "off": 1.0, "counted": 0.75}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("(B)", "B"), ("b", "B"), ("B.", "B"), ("The answer is (b).", "B"), ("a dog", "A"), ("A dog.", "A"),
     ("B: a cat", "B"), ("(A) or (B)", None), ("Z", None), ("", None), ("a bird", None), ("(B) a cat (B)", "B"),
     ("A cat", "B"), ("twin", None), ("(z) a cat", None)],
)  # fmt: skip
def test_letters_are_read(answer: str, letter: str | None) -> None:
    assert chosen(answer, ("a dog", "a cat", "twin", "twin")) == letter


def test_choices_hold_the_right_one_once() -> None:
    items = made("multiple_choice:scenes=12,choices=4").items(0)
    assert len(items) == 12
    for item in items:
        assert len(set(item.choices)) == 4
        place = ord(item.expected[0]) - ord("A")
        assert f"({item.expected[0]}) {item.choices[place]}" in item.prompt
    assert len({item.expected for item in items}) > 2


def test_one_letter_for_all_is_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made("multiple_choice:scenes=12,choices=2")
    result = answered(task, lambda item: "(A)", monkeypatch)
    share = np.mean([item.expected == ("A",) for item in task.items(0)])
    assert estimates(result)["accuracy"] == pytest.approx(share)
    assert estimates(result)["chosen"] == 1


def test_a_blind_model_sees_a_grey_picture_of_the_size() -> None:
    picture = made("chair:scenes=1").items(0)[0].images[0]
    grey, seen = look(picture, blind=True), look(picture)
    assert grey.size == seen.size == (112, 112)
    assert len(grey.getcolors()) == 1
    assert len(seen.getcolors(20000)) > 1


def test_what_is_compared() -> None:
    assert plain("  A  Cat.\n") == "a cat"
