"""Items of our own: scenes of emoji that the training of emoji-vlm never saw, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from interp.tasks._answers import same
from interp.tasks.base import Asked, Item
from interp.tasks.metrics import Metric

if TYPE_CHECKING:
    from PIL.Image import Image

    from interp.subjects.emoji.questions import Question
    from interp.subjects.emoji.scenes import Scene

FIRST = 2 * 10**12
"""Seeds of these scenes begin here: no training goes so far, and emoji-vlm's own evaluation has those from 10**12."""
BETWEEN = 10**7
"""Between the scenes of two seeds of a task."""


@dataclass(frozen=True)
class Drawn:
    """The picture of a scene, drawn when it is looked at; that of an equal scene is equal."""

    scene: Scene

    def __call__(self) -> Image:
        return self.scene.picture()


def scenes(seed: int, held_out: bool) -> Iterator[tuple[int, Scene]]:
    """Scenes without end, each with its number."""
    from interp.subjects.emoji.scenes import make_scene

    number = FIRST + seed * BETWEEN
    while True:
        yield number, make_scene(number, held_out=held_out)
        number += 1


def scene_name(number: int, held_out: bool) -> str:
    """What a scene is called: the same name is the same scene."""
    return f"scene-{number}{'-held-out' if held_out else ''}"


@dataclass(frozen=True, kw_only=True)
class OfScenes(Asked):
    """A task that asks one kind of question about scenes of emoji.

    Args:
        scenes: how many are asked about.
        questions: about each, at most; a scene that has no beyond-doubt answer is left out.
        held_out: with pairs of things and wordings that training never had; else new scenes of the kind it had.
    """

    scores: ClassVar = {"correct": ("1", "1 where the answer is right to the letter, else 0")}
    metrics: ClassVar = {"accuracy": Metric("share of questions answered right", lambda t: t["correct"])}
    about: ClassVar[str]
    """A key of `interp.subjects.emoji.questions.WORDINGS`."""
    scenes: int = 100
    questions: int = 2
    held_out: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("scenes", "questions")

    def items(self, seed: int) -> Sequence[Item]:
        from interp.subjects.emoji.questions import ask

        found: list[Item] = []
        used, endless = 0, scenes(seed, self.held_out)
        while used < self.scenes:
            number, scene = next(endless)
            asked = ask(scene, number, self.questions, held_out=self.held_out, about=self.about)
            name = scene_name(number, self.held_out)
            found += [
                Item(
                    f"{name}:{self.about}:{place}", name, question.text, (question.answer,), (Drawn(scene),),
                    facets={"wording": str(question.wording), **self.facets_of(question, scene)},
                )
                for place, question in enumerate(asked)
            ]  # fmt: skip
            used += bool(asked)
        return found

    def facets_of(self, question: Question, scene: Scene) -> dict[str, str]:
        """What a table may sort a question by."""
        return {}

    def judge(self, item: Item, answer: str) -> dict[str, float]:
        return {"correct": same(item, answer)}
