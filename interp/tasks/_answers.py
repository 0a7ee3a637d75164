"""What counts as the same answer, as each protocol has it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from interp.tasks.base import Item


def plain(text: str) -> str:
    """Lower case, single spaces, no full stop at the end: what is compared to the letter."""
    return " ".join(text.lower().split()).rstrip(".")


def same(item: Item, answer: str) -> float:
    """1 where an answer is, but for case, spaces and a full stop, one that is right."""
    return float(plain(answer) in map(plain, item.expected))


def letters(number: int) -> list[str]:
    """The letters of so many choices: A, B, ..."""
    return [chr(ord("A") + place) for place in range(number)]


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that an answer names; None where it names none, or more than one.

    In this order: a letter in brackets anywhere, "(B)"; the answer begins with a letter that stands alone ("B", "b.",
    "B: a cat"); it is the text of exactly one choice. An "A" that begins a sentence ("A dog") is no letter.
    """
    known = letters(len(choices))
    found = {letter.upper() for letter in re.findall(r"\(([A-Za-z])\)", answer)} & set(known)
    if found:
        return found.pop() if len(found) == 1 else None
    first = re.match(r"\s*([A-Za-z])\s*(?:$|[.:,)])", answer)
    if first and first[1].upper() in known:
        return first[1].upper()
    same_text = [letter for letter, choice in zip(known, choices, strict=True) if plain(choice) == plain(answer)]
    return same_text[0] if len(same_text) == 1 else None
