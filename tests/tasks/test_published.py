"""Loaders of published formats: numbers by hand, and one sentence for whatever is wrong with a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import interp
from interp.errors import InterpError
from interp.tasks import available, made
from interp.tasks.evaluating import drawn
from interp.tasks.vqav2 import CONTRACTIONS, accuracy, normalised
from tests.tasks.answered import PUBLISHED, answered, cv_rows, estimates, lines, pictures


def task(name: str, folder: Path) -> Any:
    return available()[name](folder=str(folder))


def test_a_pair_counts_where_both_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = task("mmvp", PUBLISHED["mmvp"](tmp_path))
    items = found.items(0)
    assert [item.expected for item in items] == [("A",), ("B",), ("B",), ("A",)]
    assert items[2].choices == ("A cat, indeed", "No cat")
    assert items[0].prompt == "Are the wings open? (a) Open (b) Closed"
    say = {"1": "(a)", "2": "(a)", "3": "No cat", "4": "(a) A cat, indeed"}
    result = answered(found, lambda item: say[item.id], monkeypatch)
    assert estimates(result) == {"pairs": 0.5, "accuracy": 0.75, "chosen": 1.0}


def test_sources_of_cv_bench_weigh_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADE20K 1/3, COCO 1, so 2D is 2/3; Omni3D 1/2; both together 7/12, where the plain mean is 3/6."""
    found = task("cv_bench", PUBLISHED["cv_bench"](tmp_path))
    wrong = {"test_2d:1", "test_2d:3", "test_3d:6"}
    result = answered(
        found, lambda i: f"({i.expected[0] if i.id not in wrong else 'AB'[i.expected[0] == 'A']})", monkeypatch
    )
    assert estimates(result)["cv_bench"] == pytest.approx(7 / 12)
    assert estimates(result)["accuracy"] == pytest.approx(3 / 6)
    assert estimates(result, "type", "2D")["cv_bench"] == pytest.approx(2 / 3)
    assert estimates(result, "source", "ADE20K")["cv_bench"] == pytest.approx(1 / 3)
    (tmp_path / "test_2d.jsonl").unlink()
    assert {item.facets["type"] for item in found.items(0)} == {"3D"}


def test_cv_bench_as_parquet_holds_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pictures(tmp_path, "a.png")
    held = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}
    rows = [{**row, "image": held, "bbox": [[1.0]]} for row in cv_rows()["test_3d"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test_3d.parquet")
    found = task("cv_bench", tmp_path)
    result = answered(found, lambda item: item.expected[0], monkeypatch)
    assert estimates(result)["cv_bench"] == 1
    assert found.items(0)[0].images[0]().size == (40, 30)
    pq.write_table(pa.table({"idx": [1]}), tmp_path / "test_3d.parquet")
    with pytest.raises(InterpError, match="has no column 'image'"):
        found.items(0)
    (tmp_path / "test_3d.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InterpError, match="is no Parquet file"):
        found.items(0)


def test_vqa_accuracy_by_hand() -> None:
    """Two of ten say dog: for each of the two the other one agrees (1/3), for the eight both do (2/3)."""
    people = ["dog"] * 2 + ["cat"] * 8
    assert accuracy("Dog.", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert accuracy("a cat", people) == pytest.approx(1.0)
    assert accuracy("bird", people) == 0
    assert accuracy("cat", ["cat"] * 4 + ["dog"] * 6) == pytest.approx(1.0)
    assert accuracy("cat", ["cat"] * 3 + ["dog"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two Dogs!", "2 dogs"),
        ("none", "0"),
        ("1,000", "1000"),
        ("red/green", "red green"),
        ("red / green", "red green"),
        ("2.5", "2.5"),
        ("it is.", "it is"),
        ("dont", "don't"),
        ("y'allll", "y'all'll"),
        ("couldn'tve", "couldn't've"),
        ("a\nb\tc", "b c"),
        ("it's", "it's"),
        ("", ""),
    ],
)
def test_the_official_normalisation(text: str, expected: str) -> None:
    assert normalised(text) == expected


def test_contractions_are_those_of_the_evaluation() -> None:
    """A sample of its list, and what is not in it."""
    assert CONTRACTIONS["hed've"] == CONTRACTIONS["he'dve"] == "he'd've"
    assert CONTRACTIONS["twas"] == "'twas"
    assert CONTRACTIONS["yall'd've"] == "y'all'd've"
    assert not {"im", "ive", "its", "well", "hell", "lets", "shes", "somebodyd"} & set(CONTRACTIONS)


def test_vqav2_and_gqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = task("vqav2", PUBLISHED["vqav2"](tmp_path))
    items = found.items(0)
    assert [(item.id, item.cluster) for item in items] == [("10", "42"), ("11", "42")]
    assert items[0].images[0].name == "COCO_val2014_000000000042.jpg"
    result = answered(found, lambda item: {"10": "a dog", "11": "two"}[item.id], monkeypatch)
    assert estimates(result)["accuracy"] == pytest.approx((0.6 + 1) / 2)
    assert estimates(result, "answer_type", "number") == {"accuracy": 1.0}
    gqa = task("gqa", PUBLISHED["gqa"](tmp_path))
    result = answered(gqa, lambda item: "Yes.", monkeypatch)
    assert estimates(result)["accuracy"] == 0.5
    assert estimates(result, "structural", "verify") == {"accuracy": 1.0}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_is_read_and_asked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = task(name, PUBLISHED[name](tmp_path))
    result = answered(found, lambda item: item.expected[0], monkeypatch)
    value = next(iter(estimates(result).values()))
    assert value == (0 if name == "chair" else pytest.approx(1.0, abs=0.3 if name == "vqav2" else 1e-9))


FIRST = {
    "pope": "coco_pope_random.json", "chair": "annotations/instances_val2014.json", "mmvp": "Questions.csv",
    "cv_bench": "test_2d.jsonl", "vqav2": "v2_OpenEnded_mscoco_val2014_questions.json",
    "gqa": "testdev_balanced_questions.json",
}  # fmt: skip
HOSTILE = {
    "empty": b"", "no text": b"\xff\xfe\x00", "no JSON": b"{", "a number": b"7\n", "a list": b"[1, 2]",
    "empty list": b"[]", "empty object": b"{}", "deep": b"[" * 100_000, "digits": b"9" * 10_000,
    "odd rows": b'{"questions": [{}], "data_subtype": "val2014"}', "null": b"null\n", "no rows": b"Question,Options\n",
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_that_holds_something_else(name: str, content: str, tmp_path: Path) -> None:
    folder = PUBLISHED[name](tmp_path)
    (folder / FIRST[name]).write_bytes(HOSTILE[content])
    with pytest.raises(InterpError) as told:
        task(name, folder).items(0)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    found = task(name, PUBLISHED[name](tmp_path))
    for picture in sorted(tmp_path.rglob("*.jpg")) + sorted(tmp_path.rglob("*.png")):
        picture.unlink()
    with pytest.raises(InterpError, match=r"has no picture .* put it there, or name the folder"):
        drawn(found, found.items(0), None, 0)
    (tmp_path / FIRST[name]).unlink()
    if name == "cv_bench":
        (tmp_path / "test_3d.jsonl").unlink()
    with pytest.raises(InterpError, match=r"finds no .* it reads"):
        found.items(0)
    with pytest.raises(InterpError, match="folder is no folder"):
        task(name, tmp_path / "absent").items(0)
    with pytest.raises(InterpError, match="images is no folder"):
        available()[name](folder=str(tmp_path), images=str(tmp_path / "absent")).items(0)


@pytest.mark.parametrize("name", ["mmvp", "cv_bench", "vqav2", "gqa"])
def test_a_folder_is_asked_for(name: str) -> None:
    with pytest.raises(InterpError, match="reads a folder with"):
        made(name).items(0)


@pytest.mark.parametrize("image", ["../secret.jpg", "/etc/passwd", "a\\..\\b.jpg", "a\x00.jpg", "", None, 7, ["x"]])
def test_a_picture_lies_in_the_folder(image: Any, tmp_path: Path) -> None:
    folder = PUBLISHED["pope"](tmp_path)
    lines(folder / "coco_pope_random.json", [{"question_id": 1, "image": image, "text": "Is it?", "label": "yes"}])
    with pytest.raises(InterpError, match="lies in no folder of pope"):
        interp.tasks.Pope(folder=str(folder), strategy="random").items(0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": "maybe"}, "label should be yes or no"),
        ({"label": 1}, "label should be a text"),
        ({"text": ""}, "text is empty"),
        ({"question_id": [1]}, "question_id should be a text or a whole number"),
    ],
)
def test_a_row_with_something_else(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = PUBLISHED["pope"](tmp_path)
    good = {"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}
    lines(folder / "coco_pope_random.json", [good | row])
    with pytest.raises(InterpError, match=f"entry 1 of coco_pope_random.json.*{said}"):
        interp.tasks.Pope(folder=str(folder), strategy="random").items(0)
    del good["text"]
    lines(folder / "coco_pope_random.json", [good])
    with pytest.raises(InterpError, match="has no field 'text', only image, label, question_id"):
        interp.tasks.Pope(folder=str(folder), strategy="random").items(0)


def test_two_files_that_fit_are_one_too_many(tmp_path: Path) -> None:
    folder = PUBLISHED["pope"](tmp_path)
    lines(folder / "aokvqa_pope_random.json", [{}])
    with pytest.raises(InterpError, match=r"has 2 files .*pope_random.json .* keep one"):
        interp.tasks.Pope(folder=str(folder), strategy="random").items(0)


def test_a_question_twice_is_refused(tmp_path: Path) -> None:
    folder = PUBLISHED["pope"](tmp_path)
    row = {"question_id": 1, "image": "COCO_val2014_000000000001.jpg", "text": "Is it?", "label": "yes"}
    lines(folder / "coco_pope_random.json", [row, row])
    found = interp.tasks.Pope(folder=str(folder), strategy="random")
    with pytest.raises(InterpError, match="two items called 'random:1'"):
        drawn(found, found.items(0), None, 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    folder = PUBLISHED["gqa"](tmp_path)
    (folder / FIRST["gqa"]).unlink()
    os.mkfifo(folder / FIRST["gqa"])
    with pytest.raises(InterpError, match="finds no"):
        task("gqa", folder).items(0)
    (folder / "images" / "n1.jpg").unlink()
    os.mkfifo(folder / "images" / "n1.jpg")
    (folder / FIRST["gqa"]).unlink()
    (folder / FIRST["gqa"]).write_text(json.dumps({"1": {"imageId": "n1", "question": "?", "answer": "yes"}}))
    with pytest.raises(InterpError, match="it is a pipe"):
        drawn(task("gqa", folder), task("gqa", folder).items(0), None, 0)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("mmvp", ("Questions.csv", "(a) Open (b) Closed", "Open or closed"), "Options should be like"),
        ("mmvp", ("Questions.csv", "Correct Answer", "Key"), "has no field 'Correct Answer'"),
        ("cv_bench", ("test_2d.jsonl", '"(A)"', '"(C)"'), "answer should be the letter of a choice"),
        ("cv_bench", ("test_2d.jsonl", '["left", "right"]', '["left"]'), "choices should be 2 to 26 texts"),
        ("vqav2", ("v2_OpenEnded_mscoco_val2014_questions.json", "val2014", "../x"), "data_subtype should be like"),
        ("vqav2", ("v2_mscoco_val2014_annotations.json", '"question_id": 11', '"question_id": 12'), "no annotation"),
        ("gqa", ("testdev_balanced_questions.json", '"answer"', '"key"'), "has no answer: take a split"),
        ("chair", ("annotations/instances_val2014.json", '"category_id": 7', '"category_id": 8'), "no category 8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_sentence(name: str, change: tuple[str, str, str], said: str, tmp_path: Path) -> None:
    folder = PUBLISHED[name](tmp_path)
    path, before, after = folder / change[0], change[1], change[2]
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(InterpError, match=said):
        task(name, folder).items(0)


def test_hostile_words_are_stored_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PUBLISHED["pope"](tmp_path)
    text = "<script>alert('x')</script> \"\n\t\x00 \u202e 中文 {question}"
    row = {"question_id": "\x1b[31m", "image": "COCO_val2014_000000000001.jpg", "text": text, "label": "yes"}
    lines(folder / "coco_pope_random.json", [row])
    result = answered(
        interp.tasks.Pope(folder=str(folder), strategy="random"), lambda item: f"{text}. yes", monkeypatch
    )
    stored = interp.storage.load(interp.storage.save(result, tmp_path / "x.nc"))
    assert stored["prompt"][0].item() == stored["answer"][0].item().removesuffix(". yes") == text
    assert interp.tasks.summary(stored).equals(interp.tasks.summary(result))
    assert "<script>" not in stored._repr_html_()
    lines(folder / "coco_pope_random.json", [row | {"text": "half \ud800"}])
    with pytest.raises(InterpError, match="holds half a character"):
        answered(interp.tasks.Pope(folder=str(folder), strategy="random"), lambda item: "yes", monkeypatch)


def test_the_file_of_gqa_is_a_name() -> None:
    with pytest.raises(InterpError, match="questions should be the name of a file"):
        interp.tasks.Gqa(folder=".", questions="../questions.json").items(0)
