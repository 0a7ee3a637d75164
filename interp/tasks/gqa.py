"""Questions made of scene graphs: GQA (Hudson and Manning, CVPR 2019, arXiv 1902.09506). An answer is right that is the
key's to the letter, but for case and a full stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from interp.errors import InterpError
from interp.tasks._answers import same
from interp.tasks._folder import Folder, name_of, need, text_of
from interp.tasks.base import Asked, Item
from interp.tasks.metrics import Metric

NEEDS = "testdev_balanced_questions.json and the pictures in images/"


@dataclass(frozen=True, kw_only=True)
class Gqa(Asked):
    """Answer a question about things, attributes and relations in a picture with one word or phrase.

    Reads a file of questions by their ids (fields imageId, question, answer, types) of a folder, and the pictures
    `images/IMAGEID.jpg`.

    Args:
        folder: with the published files.
        images: the folder with the pictures, where it is another.
        questions: the name of the file.

    Examples:
        >>> interp.tasks.Gqa().items(seed=0)
        Traceback (most recent call last):
        ...
        interp.errors.InterpError: gqa reads a folder with testdev_balanced_questions.json ...
    """

    name: ClassVar[str] = "gqa"
    title: ClassVar[str] = "Questions made of scene graphs (GQA)"
    by: ClassVar[tuple[str, ...]] = ("structural", "semantic")
    scores: ClassVar = {"correct": ("1", "1 where the answer is the key's, else 0")}
    metrics: ClassVar = {"accuracy": Metric("share of questions answered right", lambda t: t["correct"])}
    ask: str = "{question}\nAnswer the question using a single word or phrase."
    folder: str | None = None
    images: str | None = None
    questions: str = "testdev_balanced_questions.json"

    def items(self, seed: int) -> Sequence[Item]:
        folder = Folder(self.name, self.folder, self.images, NEEDS)
        if Path(self.questions).name != self.questions or "*" in self.questions:
            raise InterpError(f"gqa: questions should be the name of a file in the folder, found {self.questions!r}.")
        path = folder.file(self.questions)
        found = folder.json(path)
        if not isinstance(found, Mapping) or not found:
            raise InterpError(f"{path} should hold an object of questions by their ids; download it again.")
        return list(self._items(folder, found, path.name))

    def _items(self, folder: Folder, found: Mapping[str, Any], name: str) -> Iterator[Item]:
        for number, row in found.items():
            where = f"question {number} of {name}"
            if not isinstance(row, Mapping):
                raise InterpError(f"{where} should be an object; download the file again.")
            image = name_of(row, "imageId", where)
            if "answer" not in row:
                raise InterpError(f"{where} has no answer: take a split whose answers are published (testdev, val).")
            types = need(row, "types", dict, where) if "types" in row else {}
            yield Item(
                number, image, text_of(row, "question", where), (text_of(row, "answer", where),),
                (folder.picture(f"{image}.jpg", ("images", ""), where),),
                facets={kind: str(types.get(kind, "")) for kind in ("structural", "semantic")},
            )  # fmt: skip

    def judge(self, item: Item, answer: str) -> dict[str, float]:
        return {"correct": same(item, answer)}
