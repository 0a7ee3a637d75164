"""Whether a thing is in a picture, in POPE's protocol (Li et al., EMNLP 2023, arXiv 2305.10355).

A picture is asked about things that are in it and as many that are not. What is not in it is drawn at random
(`random`), is what most pictures have (`popular`), or what most often stands beside what it has (`adversarial`): the
later two find out who says yes by habit. An answer is "no" where its first sentence has the word "no" or "not", else
"yes", as in the released evaluation. That takes an answer with none of these words for a yes; `unclear` is their share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from interp.errors import InterpError
from interp.tasks._folder import Folder, name_of, text_of
from interp.tasks._scenes import FIRST, Drawn, scene_name, scenes
from interp.tasks.base import Asked, Item
from interp.tasks.metrics import Metric

if TYPE_CHECKING:
    from interp.subjects.emoji.scenes import Scene

Strategy = Literal["random", "popular", "adversarial"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
COUNTED = 2000
"""Scenes by which it is counted what most of them have, and what stands beside what."""
PLACES = ("", "val2014", "images", "images/val2014")


def says_yes(answer: str) -> bool:
    """What POPE's evaluation takes an answer for."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


@dataclass(frozen=True, kw_only=True)
class Pope(Asked):
    """Is there ... in the picture? Half of what is asked for is, half is not.

    With a folder the published files are read: `*pope_random.json`, `*pope_popular.json`, `*pope_adversarial.json`, one
    object a line (`question_id`, `image`, `text`, `label`), and COCO's pictures in it, in `val2014` or `images`, or in
    the folder `images`. Without one, scenes of emoji that emoji-vlm never saw are asked about: absent things of
    `popular` are those that most scenes have, of `adversarial` those that most often stand in a scene with what is
    there, both counted over 2,000 scenes.

    Precision, recall and F1 are of the answer "yes".

    Args:
        folder: with the published files; none: scenes of emoji.
        images: the folder with the pictures, where it is another.
        strategy: how absent things are drawn; `all` asks in all three ways.
        scenes: of emoji, how many are asked about; each has at least `objects` kinds of things.
        objects: present things that a scene is asked about in each way, and absent ones.
        held_out: with pairs of things and wordings that training never had; else new scenes of the kind it had.

    Examples:
        >>> items = interp.tasks.Pope(scenes=1, objects=2, strategy="popular").items(seed=0)
        >>> [item.expected[0] for item in items]
        ['yes', 'no', 'yes', 'no']
    """

    name: ClassVar[str] = "pope"
    title: ClassVar[str] = "Presence of things (POPE)"
    by: ClassVar[tuple[str, ...]] = ("strategy",)
    scores: ClassVar = {
        "correct": ("1", "1 where yes or no is right, else 0"),
        "yes": ("1", "1 where the answer counts as yes, else 0"),
        "present": ("1", "1 where the thing is in the picture, else 0"),
        "hit": ("1", "1 where it is and the answer is yes, else 0"),
        "unclear": ("1", "1 where the answer counts as yes without the word in it, else 0"),
    }
    metrics: ClassVar = {
        "accuracy": Metric("share of answers that are right", lambda t: t["correct"]),
        "precision": Metric("of what is said to be there, the share that is", lambda t: t["hit"], lambda t: t["yes"]),
        "recall": Metric("of what is there, the share that is said to be", lambda t: t["hit"], lambda t: t["present"]),
        "f1": Metric(
            "harmonic mean of precision and recall", lambda t: 2 * t["hit"], lambda t: t["yes"] + t["present"]
        ),
        "yes_rate": Metric("share of answers that are yes", lambda t: t["yes"]),
        "unclear": Metric("share of answers that count as yes without the word", lambda t: t["unclear"]),
    }
    folder: str | None = None
    images: str | None = None
    strategy: Literal["random", "popular", "adversarial", "all"] = "all"
    scenes: int = 50
    objects: int = 3
    held_out: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("scenes", "objects")
        if self.objects > 5:
            raise InterpError(
                f"pope: objects should be at most 5, for scenes have up to 6 things; found {self.objects}."
            )

    def items(self, seed: int) -> Sequence[Item]:
        wanted = STRATEGIES if self.strategy == "all" else (self.strategy,)
        if self.folder is not None or self.images is not None:
            return list(self._published(wanted))
        return list(self._of_scenes(wanted, seed))

    def judge(self, item: Item, answer: str) -> dict[str, float]:
        yes, present = says_yes(answer), item.expected == ("yes",)
        return {
            "correct": float(yes == present),
            "yes": float(yes),
            "present": float(present),
            "hit": float(yes and present),
            "unclear": float(yes and not re.search(r"\byes\b", answer, re.IGNORECASE)),
        }

    def _published(self, wanted: Sequence[str]) -> Iterator[Item]:
        needs = "coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json"
        folder = Folder(self.name, self.folder, self.images, needs)
        for strategy in wanted:
            path = folder.file(f"*pope_{strategy}.json", f"*pope_{strategy}.jsonl")
            for number, row in enumerate(folder.json_lines(path), start=1):
                where = f"entry {number} of {path.name}"
                label = text_of(row, "label", where).strip().lower()
                if label not in ("yes", "no"):
                    raise InterpError(f"{where}: label should be yes or no, found {label!r}; download the file again.")
                image = folder.picture(row.get("image"), PLACES, where)
                yield Item(
                    f"{strategy}:{name_of(row, 'question_id', where)}", str(row["image"]), text_of(row, "text", where),
                    (label,), (image,), facets={"strategy": strategy, "label": label},
                )  # fmt: skip

    def _of_scenes(self, wanted: Sequence[Strategy], seed: int) -> Iterator[Item]:
        used, endless = 0, scenes(seed, self.held_out)
        while used < self.scenes:
            number, scene = next(endless)
            if len(scene.kinds) >= self.objects:
                used += 1
                yield from self._of_scene(number, scene, wanted)

    def _of_scene(self, number: int, scene: Scene, wanted: Sequence[Strategy]) -> Iterator[Item]:
        from interp.subjects.emoji.held_out import wording_held_out
        from interp.subjects.emoji.kinds import KINDS
        from interp.subjects.emoji.questions import WORDINGS

        draw = np.random.default_rng([number, self.objects])
        texts = WORDINGS["presence"]
        wording = int(draw.choice([n for n in range(len(texts)) if wording_held_out(n) == self.held_out]))
        present = [int(kind) for kind in draw.permutation(sorted(scene.kinds))[: self.objects]]
        # of all strategies whichever are wanted, so that each asks the same beside the others and alone
        absent = {strategy: _absent(scene.kinds, strategy, self.objects, draw) for strategy in STRATEGIES}
        name = scene_name(number, self.held_out)
        asked = [
            (strategy, *one)
            for strategy in wanted
            for there, other in zip(present, absent[strategy], strict=True)
            for one in ((there, "yes"), (other, "no"))
        ]
        for strategy, kind, label in asked:
            yield Item(
                f"{name}:{strategy}:{KINDS[kind].name}", name, texts[wording].format(some=KINDS[kind].some), (label,),
                (Drawn(scene),), facets={"strategy": strategy, "label": label, "wording": str(wording)},
            )  # fmt: skip


def _absent(there: set[int], strategy: str, number: int, draw: np.random.Generator) -> list[int]:
    """Kinds that a scene does not have, as a strategy draws them."""
    have, beside = _counts()
    others = np.array([kind for kind in range(len(have)) if kind not in there])
    if strategy == "random":
        return [int(kind) for kind in draw.permutation(others)[:number]]
    amount = have if strategy == "popular" else beside[sorted(there)].sum(0)
    order = others[np.lexsort((others, -amount[others]))]  # of equal ones the first
    return [int(kind) for kind in order[:number]]


@cache
def _counts() -> tuple[Any, Any]:
    """How many scenes have each kind [kind], and how many have two kinds both [kind, kind]."""
    from interp.subjects.emoji.kinds import KINDS
    from interp.subjects.emoji.scenes import make_scene

    has = np.zeros((COUNTED, len(KINDS)), dtype=np.int64)
    for row in range(COUNTED):
        has[row, sorted(make_scene(FIRST - 1 - row).kinds)] = 1
    both = has.T @ has
    return np.diag(both).copy(), both - np.diag(np.diag(both))
