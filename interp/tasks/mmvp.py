"""Pairs of pictures that CLIP takes for alike, in MMVP's protocol (Tong et al., CVPR 2024, arXiv 2401.06209).

Two pictures are asked the same question with two choices, and the answers differ. A pair counts where both are right,
so that an answer from the words alone gets none: guessing gets a quarter.

What differs from the released evaluation: there a language model judges whether an answer agrees with the key; here the
letter is read (`interp.tasks`), which free text without a letter fails.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from interp.errors import InterpError
from interp.tasks._answers import letters
from interp.tasks._choosing import Choosing
from interp.tasks._folder import Folder, text_of
from interp.tasks.base import Item
from interp.tasks.metrics import Metric

PLACES = ("MMVP Images", "MMVP Imgaes", "images", "")
"""Where the pictures lie; the second is how the released script spells it."""
NEEDS = "Questions.csv and the folder 'MMVP Images' with 1.jpg, 2.jpg, ..."
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", re.IGNORECASE | re.DOTALL)


def _size(table: pd.DataFrame) -> Any:
    return table.groupby("cluster")["correct"].transform("size")


def _all_right(table: pd.DataFrame) -> Any:
    return table.groupby("cluster")["correct"].transform("min") / _size(table)


@dataclass(frozen=True, kw_only=True)
class Mmvp(Choosing):
    """Choose between two answers for each of two pictures that look alike to CLIP; both have to be right.

    Reads `Questions.csv` (columns Question, Options as in "(a) Open (b) Closed", Correct Answer) of a folder, and the
    pictures `1.jpg`, `2.jpg`, ... in the order of its rows. Rows 1 and 2 are a pair, 3 and 4, and so on.

    Args:
        folder: with the published files.
        images: the folder with the pictures, where it is another.

    Examples:
        >>> interp.tasks.Mmvp().items(seed=0)
        Traceback (most recent call last):
        ...
        interp.errors.InterpError: mmvp reads a folder with Questions.csv ...
    """

    name: ClassVar[str] = "mmvp"
    title: ClassVar[str] = "Pairs of pictures that CLIP takes for alike (MMVP)"
    clusters: ClassVar[str] = "pairs"
    whole_clusters: ClassVar[bool] = True
    metrics: ClassVar = {
        "pairs": Metric("share of pairs with both answers right", _all_right, lambda t: 1 / _size(t)),
        **Choosing.metrics,
    }
    folder: str | None = None
    images: str | None = None

    def items(self, seed: int) -> Sequence[Item]:
        folder = Folder(self.name, self.folder, self.images, NEEDS)
        path = folder.file("Questions.csv")
        rows = folder.csv(path)
        if len(rows) % 2:
            raise InterpError(f"{path} has {len(rows)} rows, and questions come in pairs; download it again.")
        return [self._item(folder, path, number, row) for number, row in enumerate(rows, start=1)]

    def _item(self, folder: Folder, path: Path, number: int, row: Any) -> Item:
        where = f"row {number} of {path.name}"
        question, options = text_of(row, "Question", where), text_of(row, "Options", where)
        choices = tuple(text for _, text in _OPTION.findall(options))
        known = [letter for letter, _ in _OPTION.findall(options)]
        right = text_of(row, "Correct Answer", where).strip().strip("()").upper()
        if [letter.upper() for letter in known] != letters(len(choices)) or right not in letters(len(choices)):
            raise InterpError(
                f"{where}: Options should be like '(a) Open (b) Closed' and Correct Answer like '(a)', found "
                f"{options[:80]!r} and {right[:20]!r}; download the file again."
            )
        picture = folder.picture(f"{number}.jpg", PLACES, where)
        pair = f"pair-{(number + 1) // 2}"
        return Item(str(number), pair, f"{question} {options}", (right,), (picture,), choices)
