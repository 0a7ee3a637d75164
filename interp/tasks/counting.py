"""How many things a picture has, of all kinds or of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from interp.tasks._answers import plain
from interp.tasks._scenes import OfScenes
from interp.tasks.base import Item
from interp.tasks.metrics import Metric

if TYPE_CHECKING:
    from interp.subjects.emoji.questions import Question
    from interp.subjects.emoji.scenes import Scene

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, kw_only=True)
class Counting(OfScenes):
    """Count the things in a scene of emoji, one to six of them, or those of one kind.

    An answer is right that is the number, in digits or as a word. How far off a number is, is measured too.

    Examples:
        >>> task = interp.tasks.Counting()
        >>> item = task.items(seed=0)[0]
        >>> task.judge(item, item.expected[0])
        {'correct': 1.0, 'counted': 1.0, 'off': 0.0}
    """

    name: ClassVar[str] = "counting"
    title: ClassVar[str] = "Counting"
    about: ClassVar[str] = "count"
    by: ClassVar[tuple[str, ...]] = ("of", "number")
    scores: ClassVar = {
        "correct": ("1", "1 where the answer is the number, else 0"),
        "counted": ("1", "1 where the answer is a number, else 0"),
        "off": ("1", "distance between a number that was answered and the right one; 0 where none was"),
    }
    metrics: ClassVar = {
        "accuracy": Metric("share of numbers that are right", lambda t: t["correct"]),
        "off": Metric(
            "mean distance of the numbers answered", lambda t: t["off"], lambda t: t["counted"], "1", share=False
        ),
        "counted": Metric("share of answers that are numbers", lambda t: t["counted"]),
    }

    def facets_of(self, question: Question, scene: Scene) -> dict[str, str]:
        whole = question.wording < 4  # the later wordings name a kind
        return {"of": "all things" if whole else "one kind", "number": question.answer}

    def judge(self, item: Item, answer: str) -> dict[str, float]:
        said = plain(answer)
        digits = said.isascii() and said.isdecimal() and len(said) < 10
        number = WORDS.index(said) if said in WORDS else int(said) if digits else None
        if number is None:
            return {"correct": 0.0, "counted": 0.0, "off": 0.0}
        off = abs(number - int(item.expected[0]))
        return {"correct": float(off == 0), "counted": 1.0, "off": float(off)}
