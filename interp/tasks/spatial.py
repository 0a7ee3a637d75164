"""Which of two things in a picture lies further left, or higher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from interp.tasks._scenes import OfScenes

if TYPE_CHECKING:
    from interp.subjects.emoji.questions import Question
    from interp.subjects.emoji.scenes import Scene

DIRECTIONS = ("left", "right", "higher", "lower")


@dataclass(frozen=True, kw_only=True)
class Spatial(OfScenes):
    """Say which of two things in a scene of emoji lies further left, further right, higher or lower.

    There is one thing of each of the two kinds, and one lies a patch (16 of 112 pixels) further. Naming one of the two
    at random is right half of the time. An answer is right that is "the" and the name, but for case and a full stop.

    Examples:
        >>> item = interp.tasks.Spatial(scenes=1, questions=1).items(seed=0)[0]
        >>> item.facets["direction"] in item.prompt
        True
    """

    name: ClassVar[str] = "spatial"
    title: ClassVar[str] = "Left or right, higher or lower"
    about: ClassVar[str] = "relation"
    by: ClassVar[tuple[str, ...]] = ("direction",)

    def facets_of(self, question: Question, scene: Scene) -> dict[str, str]:
        words = question.text.replace("?", " ").replace(",", " ").split()
        return {"direction": next(word for word in DIRECTIONS if word in words)}
