"""How well a model predicts text that goes on from a context: mean negative log-likelihood, excerpt by excerpt.

An excerpt is a context and a continuation of so many words. The context is read first, a cache policy acts on it, and
the true continuation is then scored (`lens.score`). This is not the perplexity of a sliding window over a whole corpus,
in which nothing is ever read back from a compressed cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interp.errors import InterpError
from interp.files.private import expanded
from interp.tasks.asking import Asking
from interp.tasks.base import Item, Measured, Task
from interp.tasks.metrics import Metric

_WORD = re.compile(r"\S+\s*")
MOST_FILES = 10_000


@dataclass(frozen=True, kw_only=True)
class WindowedPerplexity(Task):
    """Negative log-likelihood of the words that follow a context.

    Without a folder the excerpts are of the help topics of this Python, some of 80 documents; with one, of its `.txt`
    files in UTF-8, each a document. Excerpts of a document do not overlap.

    Args:
        folder: of text files, one a document; none: Python's help topics.
        context: words that are read first.
        scored: words after them that are scored.
        per_document: excerpts of each document, at most; they begin at places drawn by the seed.
        chunk: tokens of the continuation read at a time; policies that act at every step want 1.

    Examples:
        >>> item = interp.tasks.WindowedPerplexity(context=5, scored=2).items(seed=0)[0]
        >>> len(item.prompt.split()), len(item.expected[0].split())
        (5, 2)
    """

    name: ClassVar[str] = "windowed_perplexity"
    title: ClassVar[str] = "Text that follows a context"
    clusters: ClassVar[str] = "documents"
    scores: ClassVar = {
        "nats": ("nats", "negative log-likelihood of the continuation, sum over its tokens"),
        "tokens": ("token", "tokens of the continuation"),
        "bytes": ("byte", "bytes of the continuation in UTF-8"),
    }
    metrics: ClassVar = {
        "nll": Metric("mean over tokens", lambda t: t["nats"], lambda t: t["tokens"], "nats/token", share=False),
        "perplexity": Metric(
            "exponential of that", lambda t: t["nats"], lambda t: t["tokens"], "1", share=False,
            of=lambda nll: float(np.exp(nll)),
        ),
        "bits_per_byte": Metric(
            "what models of other tokenizers may be compared by", lambda t: t["nats"] / np.log(2), lambda t: t["bytes"],
            "bits/byte", share=False,
        ),
    }  # fmt: skip
    folder: str | None = None
    context: int = 300
    scored: int = 60
    per_document: int = 4
    chunk: int = 256

    def __post_init__(self) -> None:
        self.expect_positive("context", "scored", "per_document", "chunk")

    def items(self, seed: int) -> Sequence[Item]:
        found: list[Item] = []
        length = self.context + self.scored
        for number, (name, text) in enumerate(self._documents()):
            words = _WORD.findall(text)
            room = len(words) // length
            draw = np.random.default_rng([seed, number])
            for place in sorted(draw.permutation(room)[: self.per_document].tolist()):
                begin = place * length
                middle = begin + self.context
                context = "".join(words[begin:middle])
                held = context.rstrip()  # white space goes with what follows it, as tokenizers have it
                rest = context[len(held) :] + "".join(words[middle : begin + length]).rstrip()
                found.append(Item(f"{name}:{begin}", name, held, (rest,), facets={}))
        if not found:
            raise InterpError(f"{self.name}: no document has {length} words; lower context or scored.")
        return found

    def measure(self, asking: Asking, item: Item) -> Measured:
        costs = asking.nats(item.prompt, item.expected[0], self.chunk)
        size = len(item.expected[0].encode("utf-8", "replace"))
        return Measured({"nats": float(costs.sum()), "tokens": float(costs.size), "bytes": float(size)})

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
