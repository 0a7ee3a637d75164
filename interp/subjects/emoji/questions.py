"""Questions about a scene and their answers: what is at a place, is there one, how many, which of two is further left.

A question is asked only where its answer is beyond doubt: a place has one thing, whose middle is not near the place's
edge; of two things that are compared there is one each, and one is a patch further. Half of the questions whether
there is one ask for what is absent, and half of those for a kind that often occurs with what is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interp.subjects.emoji.held_out import wording_held_out
from interp.subjects.emoji.kinds import KINDS
from interp.subjects.emoji.scenes import MEMBERS, PATCH, SIDE, Scene, Thing

PLACES = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the middle", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
EDGE = 3
"""Pixels between the middle of a thing that is asked for and the edge of its place."""
WORDINGS = {
    "place": (
        "What is {place}?",
        "What do you see {place}?",
        "Which thing is {place}?",
        "What can be found {place}?",
        "What is there {place}?",
        "What is shown {place} of the picture?",
        "Name the thing {place}.",
        "Tell me what lies {place} of the image.",
    ),
    "presence": (
        "Is there {some} in the picture?",
        "Do you see {some}?",
        "Does the picture show {some}?",
        "Is {some} in this image?",
        "Can you see {some} here?",
        "Is {some} shown?",
        "Is there {some} here?",
        "Does this image have {some} in it?",
    ),
    "count": (
        "How many things are there?",
        "How many things do you see?",
        "Count the things.",
        "How many things does the picture show?",
        "How many {name} pictures are there?",
        "How many {name} pictures do you see?",
        "Count the {name} pictures.",
        "How many {name} pictures does the image have?",
    ),
    "relation": (
        "Which is further {side}, the {one} or the {other}?",
        "Which of them is more to the {side}, the {one} or the {other}?",
        "The {one} or the {other}: which is further {side}?",
        "Of the {one} and the {other}, which is further to the {side}?",
        "Which is {height}, the {one} or the {other}?",
        "Which of them is {height}, the {one} or the {other}?",
        "The {one} or the {other}: which is {height} in the picture?",
        "Of the {one} and the {other}, which is {height} up or down?",
    ),
}
"""What is asked, each in eight ways; which are held out says `held_out`."""
SHARES = {"presence": 0.34, "place": 0.44, "count": 0.11, "relation": 0.11}
"""Of what is drawn; whether there is something is asked twice for each draw."""


@dataclass(frozen=True)
class Question:
    """One question, its answer word for word, and what a table sorts it by."""

    about: str
    """A key of `WORDINGS`."""
    text: str
    answer: str
    wording: int
    absent: str = ""
    """Of a question for what is not there: "co-occurring" or "random", by where the kind was taken from."""


def ask(scene: Scene, seed: int, count: int, *, held_out: bool = False, about: str | None = None) -> list[Question]:
    """Questions about a scene, from a seed; no two are the same, so there may be fewer.

    Args:
        held_out: in the wordings that training never has; else only in the others.
        about: of one kind only, a key of `WORDINGS`; None: mixed, half of them or so whether there is something.
    """
    draw = np.random.default_rng([seed, held_out])
    asked: dict[str, Question] = {}
    for _ in range(4 * count):
        chosen = about or str(draw.choice(list(SHARES), p=list(SHARES.values())))
        asked |= {question.text: question for question in _MAKERS[chosen](scene, draw, held_out)}
        if len(asked) >= count:
            break
    return list(asked.values())[:count]


def _wording(draw: np.random.Generator, held_out: bool, first: int = 0, last: int = 8) -> int:
    return int(draw.choice([number for number in range(first, last) if wording_held_out(number) == held_out]))


def place_of(thing: Thing) -> int | None:
    """Which place its middle is in, by number; None: too near to an edge to say."""
    column_row = []
    for pixels in thing.centre:
        third = int(pixels * 3 // SIDE)
        edges = [SIDE * edge / 3 for edge in (1, 2)]
        if any(abs(pixels - edge) < EDGE for edge in edges):
            return None
        column_row.append(third)
    return column_row[0] + 3 * column_row[1]


def _place(scene: Scene, draw: np.random.Generator, held_out: bool) -> list[Question]:
    within = [int(x * 3 // SIDE) + 3 * int(y * 3 // SIDE) for x, y in (thing.centre for thing in scene.things)]
    alone = [
        thing
        for thing, place in zip(scene.things, within, strict=True)
        if within.count(place) == 1 and place_of(thing) is not None
    ]
    if not alone:
        return []
    thing = alone[int(draw.integers(len(alone)))]
    place, wording = place_of(thing), _wording(draw, held_out)
    assert place is not None
    text = WORDINGS["place"][wording].format(place=PLACES[place])
    return [Question("place", text, KINDS[thing.kind].some, wording)]


def _presence(scene: Scene, draw: np.random.Generator, held_out: bool) -> list[Question]:
    """Of what is there and of what is not, in one wording: an answer that looks at nothing gets one of the two."""
    near = sorted({k for one in scene.kinds for k in MEMBERS[KINDS[one].group]} - scene.kinds)
    far = sorted(set(range(len(KINDS))) - scene.kinds - set(near))
    absent = "co-occurring" if draw.random() < 0.5 else "random"
    pair = [
        (int(draw.choice(sorted(scene.kinds))), ""),
        (int(draw.choice(near if absent == "co-occurring" else far)), absent),
    ]
    wording = _wording(draw, held_out)
    asked = [
        Question("presence", WORDINGS["presence"][wording].format(some=KINDS[kind].some), answer, wording, where)
        for (kind, where), answer in zip(pair, ("yes", "no"), strict=True)
    ]
    return asked if draw.random() < 0.5 else asked[::-1]  # a list that ends early may keep the first only


def _count(scene: Scene, draw: np.random.Generator, held_out: bool) -> list[Question]:
    if draw.random() < 0.5:
        wording = _wording(draw, held_out, 0, 4)
        return [Question("count", WORDINGS["count"][wording], str(len(scene.things)), wording)]
    kind = int(draw.choice(sorted(scene.kinds)))
    wording = _wording(draw, held_out, 4, 8)
    text = WORDINGS["count"][wording].format(name=KINDS[kind].name)
    return [Question("count", text, str(sum(thing.kind == kind for thing in scene.things)), wording)]


def _relation(scene: Scene, draw: np.random.Generator, held_out: bool) -> list[Question]:
    single = [thing for thing in scene.things if sum(thing.kind == other.kind for other in scene.things) == 1]
    if len(single) < 2:
        return []
    one, other = (single[int(number)] for number in draw.choice(len(single), 2, replace=False))
    vertical = bool(draw.random() < 0.5)
    difference = one.centre[vertical] - other.centre[vertical]
    if abs(difference) < PATCH:
        return []
    beyond = bool(draw.random() < 0.5)  # further right, or lower
    words = {"side": ("left", "right")[beyond], "height": ("higher", "lower")[beyond]}
    wording = _wording(draw, held_out, 4 * vertical, 4 * vertical + 4)
    text = WORDINGS["relation"][wording].format(one=one.name, other=other.name, **words)
    return [Question("relation", text, f"the {(one if (difference > 0) == beyond else other).name}", wording)]


_MAKERS = {"place": _place, "presence": _presence, "count": _count, "relation": _relation}
