"""CHAIR: which objects a caption mentions, and its numbers by hand on annotations of three kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

import interp
from interp.errors import InterpError
from interp.tasks._objects import Objects
from interp.tasks.chair import synonyms_in
from tests.tasks.answered import PUBLISHED, answered, estimates

OBJECTS = Objects([
    ["person", "man", "woman", "child", "passenger", "baby"], ["dog", "puppy"], ["hot dog"], ["bear"],
    ["teddy bear", "teddy"], ["train"], ["chair", "seat"], ["toilet"], ["tie"], ["knife"], ["bus"], ["wine glass"],
    ["cherry"],
])  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "mentioned"),
    [
        ("Two men and a puppy.", ["person", "dog"]),
        ("A hot dog, two hot dogs", ["hot dog", "hot dog"]),
        ("a baby bear and a teddy bear", ["bear", "teddy bear"]),
        ("Passenger trains", ["train"]),
        ("the seat of a toilet", ["toilet"]),
        ("a toilet seat", ["toilet"]),
        ("an empty seat", ["chair"]),
        ("a man in a bow tie", ["person", "tie"]),
        ("knives, buses and wine glasses, cherries", ["knife", "bus", "wine glass", "cherry"]),
        ("CHILDREN's people", ["person"]),
        ("nothing to see", []),
        ("", []),
    ],
)
def test_objects_of_a_caption(caption: str, mentioned: list[str]) -> None:
    assert OBJECTS.mentioned(caption) == mentioned


def test_numbers_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image 1 has a dog and a person; image 2 a train, and a person by its reference caption."""
    task = interp.tasks.Chair(folder=str(PUBLISHED["chair"](tmp_path)))
    assert [item.expected for item in task.items(0)] == [("dog", "person"), ("person", "train")]
    say = {"1": "A puppy and a dog on a chair.", "2": "A passenger train with women."}
    result = answered(task, lambda item: say[item.id], monkeypatch)
    assert list(result["mentioned"].values) == [3, 2]
    assert list(result["hallucinated"].values) == [1, 0]
    assert list(result["found"].values) == [1, 2]
    assert estimates(result) == {"chair_s": 0.5, "chair_i": pytest.approx(1 / 5), "recall": pytest.approx(3 / 4),
                                 "mentions": 2.5}  # fmt: skip


def test_without_reference_captions_the_annotations_count(tmp_path: Path) -> None:
    folder = PUBLISHED["chair"](tmp_path)
    (folder / "annotations" / "captions_val2014.json").unlink()
    assert [item.expected for item in interp.tasks.Chair(folder=str(folder)).items(0)] == [
        ("dog", "person"),
        ("train",),
    ]


def test_captions_without_objects_have_no_share_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimates(answered(interp.tasks.Chair(scenes=3), lambda item: "A picture.", monkeypatch))
    assert found["chair_s"] == found["recall"] == 0
    assert found["chair_i"] != found["chair_i"]  # NaN


def test_scenes_are_described_by_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    task = interp.tasks.Chair(scenes=4)
    result = answered(task, lambda item: f"Some {', '.join(item.expected)}.", monkeypatch)
    assert estimates(result)["chair_i"] == 0
    assert estimates(result)["recall"] == 1


@pytest.mark.parametrize(
    ("text", "said"), [("", "is empty"), (" \n,,\n", "is empty"), ("a, b\nc, b\n", "'b' stands for 'a' and for 'c'")]
)
def test_synonyms_are_checked(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "synonyms.txt").write_text(text)
    with pytest.raises(InterpError, match=said):
        synonyms_in(tmp_path / "synonyms.txt")
