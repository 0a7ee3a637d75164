"""Results of tasks with answers written by hand, and the published files that loaders read, a few rows of each."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import interp
from interp.tasks import Item, Task
from interp.tasks.asking import Asking
from tests.vision_models import picture, shared


@cache
def seeing_lens() -> interp.Lens:
    return interp.Lens(*shared("llava"))


def answered(task: Task, say: Callable[[Item], str], patch: pytest.MonkeyPatch, **how: Any) -> xr.Dataset:
    """The result of a task where `say` is asked instead of the model; each item's answer is found by its prompt."""
    told: dict[tuple[Any, ...], str] = {}
    for item in task.items(how.get("seed", 0)):
        told[task.ask.replace("{question}", item.prompt), item.images] = say(item)

    def continued(self: Asking, prompt: str, pictures: Any, max_new_tokens: int, *, blind: bool = False) -> str:
        return told[prompt, pictures]

    with patch.context() as context:
        context.setattr(Asking, "continued", continued)
        return interp.evaluate(seeing_lens(), task, **how)


def estimates(result: xr.Dataset, facet: str = "", value: str = "") -> dict[str, float]:
    rows = interp.tasks.summary(result)
    rows = rows[(rows.facet == facet) & (rows.value == value)]
    return dict(zip(rows.measure, rows.estimate, strict=True))


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, 40, 30).save(folder / name)


def lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


POPE_ROWS = [
    {
        "question_id": 1,
        "image": "COCO_val2014_000000000001.jpg",
        "text": "Is there a dog in the image?",
        "label": "yes",
    },
    {"question_id": 2, "image": "COCO_val2014_000000000001.jpg", "text": "Is there a car in the image?", "label": "no"},
    {
        "question_id": 3,
        "image": "COCO_val2014_000000000002.jpg",
        "text": "Is there a cat in the image?",
        "label": "yes",
    },
    {"question_id": 4, "image": "COCO_val2014_000000000002.jpg", "text": "Is there a bus in the image?", "label": "no"},
]


def pope(folder: Path) -> Path:
    for strategy in ("random", "popular", "adversarial"):
        lines(folder / f"coco_pope_{strategy}.json", POPE_ROWS)
    pictures(folder / "val2014", *{row["image"] for row in POPE_ROWS})
    return folder


def chair(folder: Path) -> Path:
    coco = {
        "images": [{"id": 1, "file_name": "COCO_val2014_000000000001.jpg"},
                   {"id": 2, "file_name": "COCO_val2014_000000000002.jpg"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 7, "name": "train"}],
        "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 1, "category_id": 1},
                        {"image_id": 1, "category_id": 1}, {"image_id": 2, "category_id": 7}],
    }  # fmt: skip
    said = {"annotations": [{"image_id": 2, "caption": "Two women beside a passenger train."}]}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val2014.json").write_text(json.dumps(coco))
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps(said))
    words = [
        "person, girl, boy, man, woman, passenger",
        "dog, puppy",
        "train",
        "hot dog",
        "chair, seat",
        "toilet",
        "tie",
    ]
    (folder / "synonyms.txt").write_text("\n".join(words) + "\n")
    pictures(folder / "val2014", "COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg")
    return folder


def mmvp(folder: Path) -> Path:
    rows = [
        ["1", "Are the wings open?", "(a) Open (b) Closed", "(a)"],
        ["2", "Are the wings open?", "(a) Open (b) Closed", "(b)"],
        ["3", "Is it a cat, or not?", "(a) A cat, indeed (b) No cat", "(b)"],
        ["4", "Is it a cat, or not?", "(a) A cat, indeed (b) No cat", "(a)"],
    ]
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["lndex", "Question", "Options", "Correct Answer"], *rows])
    pictures(folder / "MMVP Images", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    return folder


def cv_rows() -> dict[str, list[dict[str, Any]]]:
    def row(idx: int, kind: str, task: str, source: str, answer: str) -> dict[str, Any]:
        return {
            "idx": idx, "type": kind, "task": task, "question": f"Question {idx}?", "choices": ["left", "right"],
            "answer": answer, "prompt": f"Question {idx}?\n(A) left\n(B) right", "source": source,
            "filename": f"{kind.lower()}/{idx}.png",
        }  # fmt: skip

    return {
        "test_2d": [row(1, "2D", "Count", "ADE20K", "(A)"), row(2, "2D", "Relation", "ADE20K", "(B)"),
                    row(3, "2D", "Relation", "ADE20K", "(A)"), row(4, "2D", "Count", "COCO", "(B)")],
        "test_3d": [row(5, "3D", "Depth", "Omni3D", "(A)"), row(6, "3D", "Distance", "Omni3D", "(B)")],
    }  # fmt: skip


def cv_bench(folder: Path) -> Path:
    for name, rows in cv_rows().items():
        lines(folder / f"{name}.jsonl", rows)
        pictures(folder / "img", *(row["filename"] for row in rows))
    return folder


def vqav2(folder: Path) -> Path:
    asked = {"data_subtype": "val2014", "questions": [
        {"question_id": 10, "image_id": 42, "question": "What is it?"},
        {"question_id": 11, "image_id": 42, "question": "How many?"}]}  # fmt: skip
    people = [["dog"] * 2 + ["cat"] * 7 + ["a cat"], ["2"] * 10]
    answered = {"annotations": [
        {"question_id": 10 + n, "image_id": 42, "question_type": "what", "answer_type": ("other", "number")[n],
         "answers": [{"answer": word, "answer_id": i + 1} for i, word in enumerate(words)]}
        for n, words in enumerate(people)]}  # fmt: skip
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(asked))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(answered))
    pictures(folder / "val2014", "COCO_val2014_000000000042.jpg")
    return folder


def gqa(folder: Path) -> Path:
    def row(question: str, answer: str, structural: str) -> dict[str, Any]:
        types = {"structural": structural, "semantic": "attr"}
        return {"imageId": "n1", "question": question, "answer": answer, "types": types}

    asked = {"201": row("Is it red?", "yes", "verify"), "202": row("What is it?", "chair", "query")}
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(asked))
    pictures(folder / "images", "n1.jpg")
    return folder


PUBLISHED: dict[str, Callable[[Path], Path]] = {
    "pope": pope, "chair": chair, "mmvp": mmvp, "cv_bench": cv_bench, "vqav2": vqav2, "gqa": gqa,
}  # fmt: skip
