"""What lies at a place of a picture, with choices to answer by a letter, in the form of CV-Bench."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interp.errors import InterpError
from interp.tasks._answers import letters
from interp.tasks._choosing import Choosing, written
from interp.tasks._scenes import Drawn, scene_name, scenes
from interp.tasks.base import Item


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Choosing):
    """Choose what lies at a place of a scene of emoji. Wrong choices are things elsewhere in the scene, as far as it
    has others, then things that often lie beside them.

    An answer is right that has the right letter in brackets or alone at its beginning, or is the choice's text.
    Guessing gets one in `choices` right.

    Args:
        scenes: how many are asked about.
        choices: how many there are to choose from, in an order drawn for each question.
        held_out: with pairs of things and wordings that training never had; else new scenes of the kind it had.

    Examples:
        >>> item = interp.tasks.MultipleChoice(scenes=1, choices=3).items(seed=0)[0]
        >>> len(item.choices), item.expected[0] in "ABC"
        (3, True)
    """

    name: ClassVar[str] = "multiple_choice"
    title: ClassVar[str] = "What is at a place, with choices"
    by: ClassVar[tuple[str, ...]] = ("letter",)
    scenes: int = 100
    choices: int = 4
    held_out: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("scenes")
        if not 2 <= self.choices <= 8:
            raise InterpError(f"multiple_choice: choices should be 2 to 8, found {self.choices}.")

    def items(self, seed: int) -> Sequence[Item]:
        from interp.subjects.emoji.kinds import KINDS
        from interp.subjects.emoji.questions import ask
        from interp.subjects.emoji.scenes import MEMBERS

        found: list[Item] = []
        endless = scenes(seed, self.held_out)
        while len(found) < self.scenes:
            number, scene = next(endless)
            for question in ask(scene, number, 1, held_out=self.held_out, about="place"):
                right = next(kind for kind in scene.kinds if KINDS[kind].some == question.answer)
                draw = np.random.default_rng([number, self.choices])
                near = sorted({kind for one in scene.kinds for kind in MEMBERS[KINDS[one].group]} - scene.kinds)
                others = [*draw.permutation(sorted(scene.kinds - {right})), *draw.permutation(near)]
                kinds = [int(kind) for kind in draw.permutation([right, *others[: self.choices - 1]])]
                texts = tuple(KINDS[kind].some for kind in kinds)
                letter = letters(len(kinds))[kinds.index(right)]
                name = scene_name(number, self.held_out)
                found.append(
                    Item(
                        f"{name}:choice", name, written(question.text, texts), (letter,), (Drawn(scene),), texts,
                        {"letter": letter, "wording": str(question.wording)},
                    )
                )  # fmt: skip
        return found
