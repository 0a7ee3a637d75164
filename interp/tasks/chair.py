"""Objects that captions make up, in CHAIR's protocol (Rohrbach et al., EMNLP 2018, arXiv 1809.02156).

A model describes a picture; each object that the caption mentions is there or not, by the picture's annotations and,
where there are any, by what its reference captions mention. CHAIR_I is the share of mentions that are of something
absent, CHAIR_S the share of captions with at least one, recall the share of what is there that is mentioned.

What differs from the released code: plurals are undone by rules of our own (there by the package `pattern`), and every
name of several words that the synonyms list counts as one word, where the code has a list of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from interp.errors import InterpError
from interp.files.reading import read_text
from interp.tasks._folder import Folder, name_of, need, text_of
from interp.tasks._objects import Objects
from interp.tasks._scenes import Drawn, scene_name, scenes
from interp.tasks.base import Asked, Item
from interp.tasks.metrics import Metric

PLACES = ("val2014", "train2014", "images", "images/val2014", "")
NEEDS = "COCO's instances_val2014.json, synonyms.txt and the pictures (and captions_val2014.json, if it is there)"


@dataclass(frozen=True, kw_only=True)
class Chair(Asked):
    """Describe a picture; what of the description is not in it?

    With a folder COCO's annotations are read (`instances*.json` in it or in `annotations`, and `captions*.json` where
    there is one), `synonyms.txt` with an object and its synonyms on each line, separated by commas, as the released
    evaluation has it, and the pictures from `val2014` or `images`. Without one, scenes of emoji are described, whose
    kinds have one name each.

    Args:
        folder: with the published files; none: scenes of emoji.
        images: the folder with the pictures, where it is another.
        question: what is asked of every picture.
        scenes: of emoji, how many are described.
        held_out: with pairs of things that training never had; else new scenes of the kind it had.
        max_new_tokens: a caption ends after so many tokens; CHAIR grows with it, so name it with every number.

    Examples:
        >>> task = interp.tasks.Chair(scenes=1)
        >>> item = task.items(seed=0)[0]
        >>> told = task.judge(item, f"A {item.expected[0]} and two unicycles beside a whale.")
        >>> told["mentioned"], told["hallucinated"], told["found"]
        (2.0, 1.0, 1.0)
    """

    name: ClassVar[str] = "chair"
    title: ClassVar[str] = "Objects that captions make up (CHAIR)"
    scores: ClassVar = {
        "mentioned": ("1", "mentions of objects in the caption"),
        "hallucinated": ("1", "those of objects that are not in the picture"),
        "any_hallucinated": ("1", "1 where there is one at least, else 0"),
        "present": ("1", "objects in the picture"),
        "found": ("1", "those that the caption mentions"),
    }
    metrics: ClassVar = {
        "chair_s": Metric("share of captions with an object that is not there", lambda t: t["any_hallucinated"]),
        "chair_i": Metric(
            "share of mentions of objects that are not there", lambda t: t["hallucinated"], lambda t: t["mentioned"]
        ),
        "recall": Metric("share of what is there that is mentioned", lambda t: t["found"], lambda t: t["present"]),
        "mentions": Metric("mentions of objects a caption", lambda t: t["mentioned"], share=False),
    }
    folder: str | None = None
    images: str | None = None
    question: str = "Please describe this image in detail."
    scenes: int = 100
    held_out: bool = True
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("scenes")

    @property
    def _published(self) -> Folder | None:
        if self.folder is None and self.images is None:
            return None
        return Folder(self.name, self.folder, self.images, NEEDS)

    @cached_property
    def _objects(self) -> Objects:
        if (folder := self._published) is not None:
            return Objects(synonyms_in(folder.file("synonyms.txt")))
        from interp.subjects.emoji.kinds import KINDS

        return Objects([[kind.name] for kind in KINDS])

    def items(self, seed: int) -> Sequence[Item]:
        self.__dict__.pop("_objects", None)  # the file may be another by now
        return list(self._of_coco() if self._published is not None else self._of_scenes(seed))

    def judge(self, item: Item, answer: str) -> dict[str, float]:
        mentioned, there = self._objects.mentioned(answer), set(item.expected)
        absent = sum(name not in there for name in mentioned)
        return {
            "mentioned": float(len(mentioned)),
            "hallucinated": float(absent),
            "any_hallucinated": float(absent > 0),
            "present": float(len(there)),
            "found": float(len(there & set(mentioned))),
        }

    def _of_scenes(self, seed: int) -> Iterator[Item]:
        from interp.subjects.emoji.kinds import KINDS

        for (number, scene), _ in zip(scenes(seed, self.held_out), range(self.scenes), strict=False):
            name = scene_name(number, self.held_out)
            there = tuple(KINDS[kind].name for kind in sorted(scene.kinds))
            yield Item(f"{name}:caption", name, self.question, there, (Drawn(scene),))

    def _of_coco(self) -> Iterator[Item]:
        folder = self._published
        assert folder is not None
        path = folder.file("instances*.json", "annotations/instances*.json")
        coco = folder.json(path)
        if not isinstance(coco, Mapping):
            raise InterpError(
                f"{path} should hold an object with images, annotations and categories; download it again."
            )
        there = self._annotated(folder, coco, path.name)
        if captions := _captions(folder):
            for image, caption in captions:
                there[image] |= set(self._objects.mentioned(caption))
        for place, row in enumerate(folder.rows(need(coco, "images", list, path.name), path)):
            where = f"image {place} of {path.name}"
            image = name_of(row, "id", where)
            picture = folder.picture(row.get("file_name"), PLACES, where)
            yield Item(image, image, self.question, tuple(sorted(there[image])), (picture,))

    def _annotated(self, folder: Folder, coco: Mapping[str, Any], name: str) -> defaultdict[str, set[str]]:
        """The objects of each image. A category that the synonyms lack stands for itself."""
        categories = {
            name_of(row, "id", f"category {place} of {name}"): text_of(
                row, "name", f"category {place} of {name}"
            ).lower()
            for place, row in enumerate(folder.rows(need(coco, "categories", list, name), name))
        }
        there: defaultdict[str, set[str]] = defaultdict(set)
        for place, row in enumerate(folder.rows(need(coco, "annotations", list, name), name)):
            where = f"annotation {place} of {name}"
            category = name_of(row, "category_id", where)
            if category not in categories:
                raise InterpError(f"{where}: there is no category {category}; download the file again.")
            named = categories[category]
            there[name_of(row, "image_id", where)].add(self._objects.stands_for.get(named, named))
        return there


def _captions(folder: Folder) -> list[tuple[str, str]]:
    """(image, reference caption) of the captions file, if there is one."""
    if (path := folder.find("captions*.json", "annotations/captions*.json")) is None:
        return []
    rows = folder.rows(need(folder.json(path), "annotations", list, path.name), path)
    return [
        (
            name_of(row, "image_id", f"caption {n} of {path.name}"),
            text_of(row, "caption", f"caption {n} of {path.name}"),
        )
        for n, row in enumerate(rows)
    ]


def synonyms_in(path: Path) -> list[list[str]]:
    """The lines of a file of synonyms: an object and what else it is called, separated by commas.

    Raises InterpError for a file without any, and for a name that stands for two objects.
    """
    text = read_text(path, "file of synonyms")
    lines = [[name.strip().lower() for name in line.split(",") if name.strip()] for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise InterpError(f"{path} is empty; it should have an object and its synonyms on each line, with commas.")
    first: dict[str, str] = {}
    for line in lines:
        for name in line:
            if first.setdefault(name, line[0]) != line[0]:
                raise InterpError(f"{path}: {name!r} stands for {first[name]!r} and for {line[0]!r}; keep one of them.")
    return lines
