"""How well emoji-vlm answers on what training never saw, and how well it answers without a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from interp.subjects.emoji.answering import QUESTIONS, Answering, answered
from interp.subjects.emoji.questions import Question, ask
from interp.subjects.emoji.scenes import Scene, make_scene

FIRST = 10**12
"""Seeds of the evaluation begin here: no training goes so far."""
TOGETHER = 4
"""Scenes in one call."""
EMPTY = Scene((), 0)
"""What a blind model sees."""

Table = dict[str, dict[str, dict[str, float]]]
"""Share of right answers and number of questions, by condition and by what is asked."""


def evaluate(answering: Answering, questions: int) -> Table:
    """At least so many questions on new scenes, and as many on held-out pairs of kinds in held-out wordings; both
    blind too.

    A question is answered where greedy decoding gives its answer to the letter.
    """
    table: Table = {}
    for condition, held_out in (("new scenes", False), ("held-out pairs and wordings", True)):
        seen, blind = Counter[str](), Counter[str]()
        total = Counter[str]()
        while total["all"] < questions:
            batch = list(_batch(FIRST + total["all"], held_out))
            scenes, asked = [scene for scene, _ in batch], [questions for _, questions in batch]
            for counted, pictures in ((seen, scenes), (blind, [EMPTY] * len(scenes))):
                for about, right in zip(asked, answered(answering, pictures, asked), strict=True):
                    for question, good in zip(about, right, strict=True):
                        counted.update(dict.fromkeys(_keys(question), good))
            total.update(key for about in asked for question in about for key in _keys(question))
        for name, counted in ((condition, seen), (f"{condition}, blind", blind)):
            table[name] = {key: {"right": counted[key] / n, "questions": n} for key, n in sorted(total.items())}
    return table


def _batch(seed: int, held_out: bool) -> Iterator[tuple[Scene, list[Question]]]:
    for number in range(seed, seed + TOGETHER):
        scene = make_scene(number, held_out=held_out)
        yield scene, ask(scene, number, QUESTIONS, held_out=held_out)


def _keys(question: Question) -> list[str]:
    """What a question counts for."""
    if question.about != "presence":
        return ["all", question.about]
    return ["all", "presence", f"presence, {f'absent, {question.absent}' if question.absent else 'present'}"]


def told(table: Table) -> str:
    """The table as lines of text."""
    keys = sorted({key for row in table.values() for key in row})
    width = max(map(len, keys))
    lines = [f"{'':{width}}  " + "  ".join(table)]
    for key in keys:
        cells = [f"{row[key]['right']:.1%} of {row[key]['questions']:.0f}" for row in table.values()]
        lines.append(
            f"{key:{width}}  " + "  ".join(f"{cell:>{len(name)}}" for cell, name in zip(cells, table, strict=True))
        )
    return "\n".join(lines)
