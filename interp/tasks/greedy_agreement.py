"""How long a model under an intervention writes what it would have written without it.

Both continue a context greedily. From the first token in which they differ each goes its own way, so what agrees after
it is not counted. Without an intervention all agree, which is the test of the measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from interp.tasks._excerpts import OfExcerpts
from interp.tasks.asking import Asking
from interp.tasks.base import Item, Measured
from interp.tasks.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class GreedyAgreement(OfExcerpts):
    """Tokens that a model writes alike with and without the intervention, up to the first that differs.

    A cache policy leaves the first token as it is, which comes from the prompt alone.

    Args:
        max_new_tokens: how many are written, at most.

    Examples:
        >>> result = interp.evaluate(lens, "greedy_agreement:context=20,max_new_tokens=4", items=2)
        >>> bool(result["identical"].all())
        True
    """

    name: ClassVar[str] = "greedy_agreement"
    title: ClassVar[str] = "Agreement with the untouched model, word for word"
    scores: ClassVar = {
        "agreed": ("token", "tokens before the first that differs"),
        "tokens": ("token", "tokens that the untouched model writes"),
        "identical": ("1", "1 where both write the same, else 0"),
    }
    metrics: ClassVar = {
        "agreed": Metric("share of tokens before the first that differs", lambda t: t["agreed"], lambda t: t["tokens"]),
        "identical": Metric("share of texts that are the same to their end", lambda t: t["identical"]),
    }
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("max_new_tokens")

    def items(self, seed: int) -> Sequence[Item]:
        return self.excerpts(seed, following=1)

    def measure(self, asking: Asking, item: Item) -> Measured:
        said = asking.said(item.prompt, (), self.max_new_tokens)
        plain = asking.untouched.said(item.prompt, (), self.max_new_tokens)
        pairs = zip(said.tokens, plain.tokens, strict=False)
        agreed = next((n for n, (one, other) in enumerate(pairs) if one != other),
                      min(len(said.tokens), len(plain.tokens)))  # fmt: skip
        scores = {
            "agreed": float(agreed),
            "tokens": float(len(plain.tokens)),
            "identical": float(said.tokens == plain.tokens),
        }
        return Measured(scores, said.text)
