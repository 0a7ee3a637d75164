"""Which objects a caption mentions, as CHAIR counts them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
YOUNG_AND_OLD = ("baby", "adult")
"""Before an animal they are no person."""
VEHICLES = ("jet", "train")
"""After "passenger", which is no person then."""
OTHERS = {"bow tie": "tie", "toilet seat": "toilet"}
IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "policemen": "policeman", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox",
}  # fmt: skip
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
LONGEST = 4
"""Words of a name that is looked for."""


class Objects:
    """Names of objects, each with its synonyms; the first of a line stands for all of it."""

    def __init__(self, synonyms: Sequence[Sequence[str]]) -> None:
        self.stands_for = {name.lower(): line[0].lower() for line in synonyms for name in line}
        known = self.stands_for
        rules = {f"{age} {animal}": animal for age in YOUNG_AND_OLD for animal in ANIMALS if animal in known}
        rules |= {f"passenger {vehicle}": vehicle for vehicle in VEHICLES if vehicle in known}
        rules |= {words: name for words, name in OTHERS.items() if name in known}
        self._named = known | {words: known[name] for words, name in rules.items()}

    def mentioned(self, caption: str) -> list[str]:
        """What a caption mentions, in order, each time that it does; the longest name counts ("hot dog" is no dog)."""
        words = _WORD.findall(caption.lower())
        without_seat = "toilet" in words  # a toilet's seat is no chair
        found, place = [], 0
        while place < len(words):
            for length in range(min(LONGEST, len(words) - place), 0, -1):
                name = self._name(words[place : place + length])
                if name is not None and not (without_seat and words[place : place + length] == ["seat"]):
                    found.append(name)
                    place += length
                    break
            else:
                place += 1
        return found

    def _name(self, words: Sequence[str]) -> str | None:
        *before, last = words
        return next((self._named[name] for one in singulars(last) if (name := " ".join([*before, one])) in self._named),
                    None)  # fmt: skip


def singulars(word: str) -> Iterator[str]:
    """A word, and what it may be the plural of."""
    yield word
    if word in IRREGULAR:
        yield IRREGULAR[word]
    for end, instead in (("ies", ("y",)), ("ves", ("f", "fe")), ("es", ("",)), ("s", ("",))):
        if word.endswith(end) and len(word) > len(end) + 1:
            yield from (word[: -len(end)] + other for other in instead)
