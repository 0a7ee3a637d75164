"""Questions have the answers that the scene gives, by rules of the test's own."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from interp.subjects.emoji.held_out import wording_held_out
from interp.subjects.emoji.kinds import KINDS
from interp.subjects.emoji.questions import PLACES, WORDINGS, Question, ask
from interp.subjects.emoji.scenes import Scene, Thing, make_scene

SCENES = [make_scene(seed) for seed in range(250)]
ASKED = [(scene, question) for seed, scene in enumerate(SCENES) for question in ask(scene, seed, 6)]
BY_NAME = {kind.name: number for number, kind in enumerate(KINDS)}


def of(about: str) -> list[tuple[Scene, Question]]:
    found = [(scene, question) for scene, question in ASKED if question.about == about]
    assert len(found) > 50
    return found


def kinds_in(text: str) -> list[int]:
    return [BY_NAME[word] for word in re.findall(r"[a-z]+", text) if word in BY_NAME]


def test_a_seed_asks_the_same() -> None:
    assert ask(SCENES[0], 5, 6) == ask(SCENES[0], 5, 6) != ask(SCENES[0], 6, 6)


def test_no_question_is_asked_twice() -> None:
    for seed, scene in enumerate(SCENES):
        texts = [question.text for question in ask(scene, seed, 12)]
        assert len(set(texts)) == len(texts)


def test_presence() -> None:
    for scene, question in of("presence"):
        (kind,) = kinds_in(question.text)
        assert question.answer == ("yes" if kind in scene.kinds else "no")
        assert bool(question.absent) == (question.answer == "no")
        near = {KINDS[one].group for one in scene.kinds}
        assert not question.absent or (KINDS[kind].group in near) == (question.absent == "co-occurring")


def test_half_is_absent_and_half_of_that_likely() -> None:
    questions = [question for _, question in of("presence")]
    answers, absent = Counter(q.answer for q in questions), Counter(q.absent for q in questions)
    assert 0.4 < answers["yes"] / len(questions) < 0.6
    assert 0.4 < absent["co-occurring"] / answers["no"] < 0.6


def test_place() -> None:
    for scene, question in of("place"):
        place = max((place for place in PLACES if place in question.text), key=len)
        row = 0 if "top" in place else 2 if "bottom" in place else 1
        column = 0 if "left" in place else 2 if "right" in place else 1
        inside = [t for t in scene.things if (int(t.centre[0] * 3 / 112), int(t.centre[1] * 3 / 112)) == (column, row)]
        assert [KINDS[thing.kind].some for thing in inside] == [question.answer]


def test_count() -> None:
    for scene, question in of("count"):
        kinds = kinds_in(question.text)
        assert question.answer == str(sum(not kinds or thing.kind in kinds for thing in scene.things))


def test_relation() -> None:
    words = {"left": (0, -1), "right": (0, 1), "higher": (1, -1), "lower": (1, 1)}
    for scene, question in of("relation"):
        ((axis, sign),) = [rule for word, rule in words.items() if re.search(rf"\b{word}\b", question.text)]
        things = [thing for thing in scene.things if thing.kind in kinds_in(question.text)]
        assert len(things) == 2
        assert question.answer == f"the {max(things, key=lambda thing: sign * thing.centre[axis]).name}"


@pytest.mark.parametrize("about", WORDINGS)
def test_wordings_are_held_out(about: str) -> None:
    assert len(set(WORDINGS[about])) == 8
    for held_out in (False, True):
        used = {
            question.wording
            for seed, scene in enumerate(SCENES)
            for question in ask(scene, seed, 4, held_out=held_out, about=about)
        }
        assert used == {number for number in range(8) if wording_held_out(number) == held_out}


def test_what_cannot_be_asked_is_not() -> None:
    cat = Thing(BY_NAME["cat"], left=22, top=40, width=32, height=32)  # its middle is a pixel from a place's edge
    alone = Scene((cat,), 0)
    assert not ask(alone, 0, 5, about="relation")
    assert not ask(alone, 0, 5, about="place")
    two = Scene((cat, Thing(cat.kind, left=70, top=40, width=32, height=32)), 0)
    assert not ask(two, 0, 5, about="relation")
