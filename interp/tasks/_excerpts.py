"""Excerpts of documents: a context, and the words that follow it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interp.errors import InterpError
from interp.files.private import expanded
from interp.tasks.base import Item, Task

_WORD = re.compile(r"\S+\s*")
MOST_FILES = 10_000


@dataclass(frozen=True, kw_only=True)
class OfExcerpts(Task):
    """A task on excerpts of texts: of the help topics of this Python, some of 80 documents, or of text files.

    Args:
        folder: of text files in UTF-8 that end in `.txt`, one a document; none: Python's help topics.
        context: words that are read first.
        per_document: excerpts of each document, at most, which do not overlap; drawn by the seed.
    """

    clusters: ClassVar[str] = "documents"
    folder: str | None = None
    context: int = 300
    per_document: int = 4

    def __post_init__(self) -> None:
        self.expect_positive("context", "per_document")

    def excerpts(self, seed: int, following: int) -> Sequence[Item]:
        """Items whose prompts have `context` words, and what is expected so many that follow. Raises InterpError where
        no document is as long."""
        found: list[Item] = []
        length = self.context + following
        for number, (name, text) in enumerate(self._documents()):
            words = _WORD.findall(text)
            draw = np.random.default_rng([seed, number])
            for place in sorted(draw.permutation(len(words) // length)[: self.per_document].tolist()):
                begin = place * length
                middle = begin + self.context
                context = "".join(words[begin:middle])
                held = context.rstrip()  # white space goes with what follows it, as tokenizers have it
                rest = context[len(held) :] + "".join(words[middle : begin + length]).rstrip()
                found.append(Item(f"{name}:{begin}", name, held, (rest,)))
        if not found:
            raise InterpError(f"{self.name}: no document has {length} words; lower context, or take longer texts.")
        return found

    def _documents(self) -> Iterator[tuple[str, str]]:
        from interp.subjects.texts import demo_documents, read_text

        if self.folder is None:
            yield from demo_documents().items()
            return
        folder = expanded(self.folder, f"{self.name}: folder")
        paths = sorted(folder.glob("*.txt")) if folder.is_dir() else []
        if not paths or len(paths) > MOST_FILES:
            raise InterpError(
                f"{self.name}: folder should hold 1 to {MOST_FILES:,} text files that end in .txt, and {self.folder} "
                f"holds {len(paths):,}; name another."
            )
        for path in paths:
            yield path.name, read_text(path)
