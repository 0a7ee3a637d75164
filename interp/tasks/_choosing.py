"""Questions with choices, answered by a letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from interp.tasks._answers import chosen, letters
from interp.tasks.base import Asked, Item
from interp.tasks.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Choosing(Asked):
    """A task whose answers are letters of choices; an answer that is the text of exactly one of them counts as well."""

    scores: ClassVar = {
        "correct": ("1", "1 where the answer names the right choice, else 0"),
        "chosen": ("1", "1 where the answer names one choice, else 0"),
    }
    metrics: ClassVar = {
        "accuracy": Metric("share of questions answered right", lambda t: t["correct"]),
        "chosen": Metric("share of answers that name one choice", lambda t: t["chosen"]),
    }
    ask: str = "{question}\nAnswer with the option's letter from the given choices directly."

    def judge(self, item: Item, answer: str) -> dict[str, float]:
        letter = chosen(answer, item.choices)
        return {"correct": float(letter in item.expected), "chosen": float(letter is not None)}


def written(question: str, choices: Sequence[str]) -> str:
    """A question with its choices, a line each."""
    lines = [f"({letter}) {choice}" for letter, choice in zip(letters(len(choices)), choices, strict=True)]
    return "\n".join([question, *lines])
