"""POPE: its own way to read an answer, its numbers by hand, whom scenes are asked about, and the published files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import interp
from interp.subjects.emoji.kinds import KINDS
from interp.subjects.emoji.scenes import make_scene
from interp.tasks import pope
from interp.tasks.pope import says_yes
from tests.tasks.answered import PUBLISHED, answered, estimates


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes, there is a dog.", True),
        ("yes", True),
        ("No, there is no dog. Yes.", False),
        ("no", False),
        ("There is not a dog", False),
        ("Nope", True),  # as the released evaluation has it: neither word
        ("NO", True),
        ("no\n", True),
        ("A dog. No, two.", True),  # the first sentence counts
        ("", True),
        ("No,thing", True),
    ],
)
def test_an_answer_is_read_as_released(answer: str, yes: bool) -> None:
    assert says_yes(answer) is yes


def test_numbers_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of items 1 to 4 (yes no yes no) the answers are yes, yes, no, no: one hit, one false alarm, one miss."""
    task = interp.tasks.Pope(folder=str(PUBLISHED["pope"](tmp_path)), strategy="popular")
    say = {"popular:1": "Yes.", "popular:2": "Well, yes", "popular:3": "no", "popular:4": "There is not one"}
    result = answered(task, lambda item: say[item.id], monkeypatch)
    assert estimates(result) == {
        "accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_rate": 0.5, "unclear": 0.0,
    }  # fmt: skip
    assert (
        list(result["cluster"].values) == ["COCO_val2014_000000000001.jpg"] * 2 + ["COCO_val2014_000000000002.jpg"] * 2
    )
    assert 'answering "yes" to all of them would be right in 50.0%' in interp.tasks.findings(result)[0]


def test_who_always_says_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = interp.tasks.Pope(folder=str(PUBLISHED["pope"](tmp_path)))
    found = estimates(answered(task, lambda item: "It is a picture", monkeypatch))
    assert found["recall"] == found["yes_rate"] == found["unclear"] == 1
    assert found["precision"] == found["accuracy"] == 0.5
    assert found["f1"] == pytest.approx(2 / 3)
    assert estimates(answered(task, lambda item: "no", monkeypatch), "strategy", "random")["accuracy"] == 0.5


def test_published_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    folder, other = PUBLISHED["pope"](tmp_path / "a"), tmp_path / "b"
    (folder / "val2014").rename(other)
    items = interp.tasks.Pope(folder=str(folder), images=str(other)).items(0)
    assert items[0].images == (other / "COCO_val2014_000000000001.jpg",)


def scene_of(item: interp.tasks.Item) -> set[str]:
    scene = make_scene(int(item.cluster.split("-")[1]), held_out="held-out" in item.cluster)
    return {KINDS[kind].name for kind in scene.kinds}


def test_half_is_there_and_half_is_not() -> None:
    items = interp.tasks.Pope(scenes=4, objects=3).items(0)
    assert len(items) == 4 * 3 * 6
    for item in items:
        asked = item.id.split(":")[2]
        assert asked in item.prompt
        assert (asked in scene_of(item)) == (item.expected == ("yes",))
    assert {item.facets["wording"] for item in items} <= {"3", "7"}, "wordings that training never had"
    present = [{item.id.split(":")[2] for item in items if item.facets["strategy"] == s and item.expected == ("yes",)}
               for s in pope.STRATEGIES]  # fmt: skip
    assert present[0] == present[1] == present[2]


def test_absent_things_are_popular_or_stand_beside() -> None:
    """Counted again from the scenes, without matrices."""
    have: dict[int, int] = {}
    beside: dict[tuple[int, int], int] = {}
    for row in range(pope.COUNTED):
        kinds = make_scene(pope.FIRST - 1 - row).kinds
        for one in kinds:
            have[one] = have.get(one, 0) + 1
            for other in kinds - {one}:
                beside[one, other] = beside.get((one, other), 0) + 1
    there = {3, 40}
    others = [kind for kind in range(len(KINDS)) if kind not in there]
    draw = np.random.default_rng(0)
    popular = sorted(others, key=lambda kind: (-have.get(kind, 0), kind))[:4]
    near = sorted(others, key=lambda kind: (-sum(beside.get((one, kind), 0) for one in there), kind))[:4]
    assert pope._absent(there, "popular", 4, draw) == popular
    assert pope._absent(there, "adversarial", 4, draw) == near
    groups = {KINDS[kind].group for kind in there}
    assert all(KINDS[kind].group in groups for kind in near), "what stands beside is mostly of their own groups"
    drawn = pope._absent(there, "random", 4, draw)
    assert len(set(drawn)) == 4
    assert not set(drawn) & there
