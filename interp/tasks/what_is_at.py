"""What lies at a place of a picture: at the top left, in the middle, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from interp.tasks._scenes import OfScenes

if TYPE_CHECKING:
    from interp.subjects.emoji.questions import Question
    from interp.subjects.emoji.scenes import Scene


@dataclass(frozen=True, kw_only=True)
class WhatIsAt(OfScenes):
    """Name the one thing that lies at a place of a scene of emoji, one of nine; the middle of it is not near an edge.

    An answer is right that is, but for case and a full stop, the thing's name with its article: "a cat".

    Examples:
        >>> interp.tasks.WhatIsAt(scenes=2, questions=1).items(seed=0)[0].prompt
        'What can be found on the left?'
    """

    name: ClassVar[str] = "what_is_at"
    title: ClassVar[str] = "What is at a place"
    about: ClassVar[str] = "place"
    by: ClassVar[tuple[str, ...]] = ("place",)

    def facets_of(self, question: Question, scene: Scene) -> dict[str, str]:
        from interp.subjects.emoji.questions import PLACES

        # the longest first: "at the top" begins "at the top left"
        return {"place": next(place for place in sorted(PLACES, key=len, reverse=True) if place in question.text)}
