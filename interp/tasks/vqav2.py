"""Open questions about pictures, each answered by ten people: VQAv2 (Goyal et al., CVPR 2017, arXiv 1612.00837).

An answer is compared with the ten after the official normalisation. For each of them left out, it counts a third for
every one of the other nine that agrees, one at most; the accuracy is the mean of the ten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from interp.errors import InterpError
from interp.tasks._folder import Folder, name_of, need, text_of
from interp.tasks.base import Asked, Item
from interp.tasks.metrics import Metric

NEEDS = "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and COCO's pictures"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(WORDS)}}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
"""What the official evaluation writes with all apostrophes again, where one of them was left out."""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
}
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")


def without_punctuation(text: str) -> str:
    """The first step of the official normalisation: what an answer and, where they differ, the ten go through."""
    joined = _NUMBER_WITH_COMMA.search(text) is not None
    found = text
    for sign in PUNCTUATION:
        beside_a_space = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if beside_a_space or joined else " ")
    return _STOP.sub("", found)


def normalised(text: str) -> str:
    """An answer as the official evaluation compares it: no punctuation, lower case, digits, no articles."""
    words = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA accuracy of an answer beside those of people."""
    said = normalised(answer)
    theirs = [without_punctuation(one) for one in people] if len(set(people)) > 1 else list(people)
    agree = [one == said for one in theirs]
    return sum(min(1.0, (sum(agree) - own) / 3) for own in agree) / len(agree)


@dataclass(frozen=True, kw_only=True)
class Vqav2(Asked):
    """Answer an open question about a picture in a word or two, as ten people did.

    Reads `*questions.json` and `*annotations.json` of a folder, and COCO's pictures
    (`COCO_val2014_000000000042.jpg`) in it, in `val2014` or `images`.

    Args:
        folder: with the published files.
        images: the folder with the pictures, where it is another.

    Examples:
        >>> from interp.tasks.vqav2 import accuracy
        >>> round(accuracy("A dog.", ["dog"] * 2 + ["cat"] * 8), 2)
        0.6
    """

    name: ClassVar[str] = "vqav2"
    title: ClassVar[str] = "Open questions, ten people's answers (VQAv2)"
    by: ClassVar[tuple[str, ...]] = ("answer_type",)
    scores: ClassVar = {"accuracy": ("1", "VQA accuracy of the answer, 0 to 1")}
    metrics: ClassVar = {"accuracy": Metric("mean VQA accuracy", lambda t: t["accuracy"])}
    ask: str = "{question}\nAnswer the question using a single word or phrase."
    folder: str | None = None
    images: str | None = None

    def items(self, seed: int) -> Sequence[Item]:
        folder = Folder(self.name, self.folder, self.images, NEEDS)
        path, key = folder.file("*questions.json"), folder.file("*annotations.json")
        asked = folder.json(path)
        subset = text_of(asked, "data_subtype", path.name) if isinstance(asked, Mapping) else ""
        if not re.fullmatch(r"\w{1,40}", subset):
            raise InterpError(f"{path}: data_subtype should be like val2014, found {subset[:40]!r}; download it again.")
        answered = {
            name_of(row, "question_id", f"annotation {n} of {key.name}"): row
            for n, row in enumerate(folder.rows(_list(folder.json(key), "annotations", key.name), key))
        }
        rows = folder.rows(need(asked, "questions", list, path.name), path)
        return list(self._items(folder, rows, answered, subset, path.name))

    def _items(
        self, folder: Folder, rows: Sequence[Mapping[str, Any]], answered: Mapping[str, Any], subset: str, name: str
    ) -> Iterator[Item]:
        places = (subset, "images", f"images/{subset}", "")
        for number, row in enumerate(rows, start=1):
            where = f"question {number} of {name}"
            question, image = name_of(row, "question_id", where), need(row, "image_id", int, where)
            if question not in answered:
                raise InterpError(f"{where} has no annotation (question_id {question}); take files of the same split.")
            people = folder.rows(need(answered[question], "answers", list, where), where)
            answers = tuple(need(one, "answer", str, f"an answer to {where}") for one in people)
            yield Item(
                question, str(image), text_of(row, "question", where), answers,
                (folder.picture(f"COCO_{subset}_{image:012d}.jpg", places, where),),
                facets={"answer_type": name_of(answered[question], "answer_type", where)},
            )  # fmt: skip

    def judge(self, item: Item, answer: str) -> dict[str, float]:
        return {"accuracy": accuracy(answer, item.expected)}


def _list(found: Any, name: str, where: str) -> Any:
    if not isinstance(found, Mapping):
        raise InterpError(f"{where} should hold an object with {name}; download it again.")
    return need(found, name, list, where)
