"""Places, numbers, depth and distance of things in pictures: CV-Bench (Tong et al., Cambrian-1, arXiv 2406.16860).

Its number is the mean of 2D and 3D, 2D being the mean of the questions on ADE20K's and on COCO's pictures, 3D those on
Omni3D's: a source counts as a whole however many of its questions are asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from interp.errors import InterpError
from interp.tasks._answers import letters
from interp.tasks._choosing import Choosing, written
from interp.tasks._folder import Folder, name_of, need, text_of
from interp.tasks.base import Item
from interp.tasks.looking import Picture
from interp.tasks.metrics import Metric

FILES = ("test_2d", "test_3d")
PLACES = ("img", "images", "")
NEEDS = "test_2d.jsonl and test_3d.jsonl with the pictures in img/, or test_2d.parquet and test_3d.parquet"


def _weight(table: pd.DataFrame) -> Any:
    """Of each question, so that sources weigh the same in a type, and types in all."""
    sources = table.groupby("type")["source"].transform("nunique")
    return 1 / (table["type"].nunique() * sources * table.groupby(["type", "source"])["correct"].transform("size"))


@dataclass(frozen=True, kw_only=True)
class CvBench(Choosing):
    """Choose an answer about a picture: relation and number of things (2D), depth and distance (3D).

    Reads `test_2d.jsonl` and `test_3d.jsonl` (fields idx, type, task, question, choices, answer as in "(C)", prompt,
    filename, source) of a folder with the pictures in `img`, or the `.parquet` files of the same names, which hold the
    pictures. One of the two types is enough: the number is then that type's.

    Args:
        folder: with the published files.
        images: the folder with the pictures, where it is another.

    Examples:
        >>> interp.tasks.CvBench().items(seed=0)
        Traceback (most recent call last):
        ...
        interp.errors.InterpError: cv_bench reads a folder with test_2d.jsonl ...
    """

    name: ClassVar[str] = "cv_bench"
    title: ClassVar[str] = "Places, numbers, depth and distance (CV-Bench)"
    by: ClassVar[tuple[str, ...]] = ("type", "source", "task")
    metrics: ClassVar = {
        "cv_bench": Metric("mean over types of means over sources", lambda t: _weight(t) * t["correct"], _weight),
        **Choosing.metrics,
    }
    folder: str | None = None
    images: str | None = None

    def items(self, seed: int) -> Sequence[Item]:
        folder = Folder(self.name, self.folder, self.images, NEEDS)
        there = [name for name in FILES if folder.find(f"{name}.jsonl", f"{name}.parquet")]
        return [item for name in there or FILES[:1] for item in self._of_file(folder, name)]

    def _of_file(self, folder: Folder, name: str) -> Iterator[Item]:
        path = folder.file(f"{name}.jsonl", f"{name}.parquet")
        rows: Sequence[tuple[Mapping[str, Any], Picture | None]]
        if path.suffix == ".jsonl":
            rows = [(row, None) for row in folder.json_lines(path)]
        else:
            from interp.tasks._parquet import rows_with_pictures

            rows = rows_with_pictures(path)
        for number, (row, held) in enumerate(rows, start=1):
            where = f"entry {number} of {path.name}"
            choices = tuple(need(row, "choices", list, where))
            right = text_of(row, "answer", where).strip().strip("()").upper()
            if not 1 < len(choices) <= 26 or not all(isinstance(one, str) for one in choices):
                raise InterpError(f"{where}: choices should be 2 to 26 texts; download the file again.")
            if right not in letters(len(choices)):
                raise InterpError(f"{where}: answer should be the letter of a choice, found {right[:20]!r}.")
            picture = held or folder.picture(row.get("filename"), PLACES, where)
            question = row["prompt"] if row.get("prompt") else written(text_of(row, "question", where), choices)
            shown = str(picture) if held is None else f"{path.stem}-{number}"
            yield Item(
                f"{name}:{name_of(row, 'idx', where)}", name_of(row, "filename", where) if held is None else shown,
                str(question), (right,), (picture,), choices,
                {
                    "type": text_of(row, "type", where), "source": text_of(row, "source", where),
                    "task": text_of(row, "task", where),
                },
            )  # fmt: skip
