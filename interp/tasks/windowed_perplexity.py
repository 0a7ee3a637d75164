"""How well a model predicts text that goes on from a context: mean negative log-likelihood, excerpt by excerpt.

An excerpt is a context and a continuation of so many words. The context is read first, a cache policy acts on it, and
the true continuation is then scored (`lens.score`). This is not the perplexity of a sliding window over a whole corpus,
in which nothing is ever read back from a compressed cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interp.tasks._excerpts import OfExcerpts
from interp.tasks.asking import Asking
from interp.tasks.base import Item, Measured
from interp.tasks.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class WindowedPerplexity(OfExcerpts):
    """Negative log-likelihood of the words that follow a context.

    Args:
        scored: words after the context that are scored.
        chunk: tokens of the continuation read at a time; policies that act at every step want 1.

    Examples:
        >>> item = interp.tasks.WindowedPerplexity(context=5, scored=2).items(seed=0)[0]
        >>> len(item.prompt.split()), len(item.expected[0].split())
        (5, 2)
    """

    name: ClassVar[str] = "windowed_perplexity"
    title: ClassVar[str] = "Text that follows a context"
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
    scored: int = 60
    chunk: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("scored", "chunk")

    def items(self, seed: int) -> Sequence[Item]:
        return self.excerpts(seed, self.scored)

    def measure(self, asking: Asking, item: Item) -> Measured:
        costs = asking.nats(item.prompt, item.expected[0], self.chunk)
        size = len(item.expected[0].encode("utf-8", "replace"))
        return Measured({"nats": float(costs.sum()), "tokens": float(costs.size), "bytes": float(size)})
