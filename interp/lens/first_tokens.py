"""The first tokens of a long text without reading all of it.

A tokenizer's work grows with the text: tens of seconds and gigabytes for a book of which a few tokens are kept. So a
beginning of the text is tokenised, cut where no token can span the cut: between a word and the space, the line or the
word of the next line that follows. That holds where no token of the vocabulary has such a pair of characters inside,
and where the rules that split a text look no further ahead. Then the tokens before the cut are those of the whole text,
and as a second look a beginning of at least twice the length has to begin with the same tokens. Where any of this does
not hold, the whole text is tokenised.
"""

from __future__ import annotations

import re
from typing import Any

from interp.lens.foreign import ids_of

LONG = 50_000
"""Characters from which on it is worth while: below, the whole text takes some 0.1 s."""
A_TOKEN = 8
"""Characters that a token has at most on average, where the first beginning is to suffice."""
SHORTEST, GROWTH = 4_096, 4
_WORD = r"[^\s\0!-/:-@\[-^`{-~]"  # all but white space and ASCII punctuation: bytes of longer characters count as words
_CUTS = {
    r"(?<=\w)(?= \w)": re.compile(f"{_WORD} "),
    r"(?<=\w)(?=\n\w)": re.compile(f"{_WORD}\n"),
    r"(?<=\S\n)(?=\w)": re.compile(f"\n{_WORD}"),  # after one line's end alone: GPT-2's rules take several apart
}
"""Where a text may be cut, and what a token must not hold for that."""
_LINE_ENDS_A_WORD = r"(?<=\S\n)(?=\w)"
_PIECES = ("BPE", "Unigram")  # what knows pieces of words and puts them together by what the vocabulary holds
_SPLIT_AT_SPACES = ('"Whitespace"', '"WhitespaceSplit"', '"BertPreTokenizer"', '"Metaspace"')
_LOOKS_AHEAD = re.compile(r"\(\?(?:[=!]|<[=!])")
_TO_THE_NEXT_CHARACTER = "(?!\\\\S)"  # the one look ahead that a cut keeps, as JSON writes it


def first_tokens(tokenizer: Any, text: str, n: int, special: bool = True) -> list[int]:
    """At least the first `n` ids of a text, as they are in the ids of the whole text; all of them if it has no more.

    `special`: with the special tokens that the tokenizer puts before a text.
    """
    size = max(SHORTEST, A_TOKEN * n)
    if len(text) < max(LONG, 2 * GROWTH * size) or not (cuts := _cuts(tokenizer)):
        return ids_of(tokenizer, text, special)
    while 2 * GROWTH * size <= len(text):
        here, further = (_cut(cuts, text, end // 2, end) for end in (size, 2 * GROWTH * size))
        if here and further:
            begun = ids_of(tokenizer, text[:here], False)
            if len(begun) > n and ids_of(tokenizer, text[:further], False)[: len(begun)] == begun:
                return ids_of(tokenizer, text[:here], True) if special else begun
        size *= GROWTH
    return ids_of(tokenizer, text, special)


def _cut(cuts: re.Pattern[str], text: str, start: int, end: int) -> int:
    """The last place between two characters where a text may be cut; 0 where there is none."""
    found = 0
    for match in cuts.finditer(text, start, end):
        found = match.start()
    return found


def _cuts(tokenizer: Any) -> re.Pattern[str] | None:
    """Where this tokenizer's texts may be cut; None where no cut is known to be safe."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    inner = tokenizer.backend_tokenizer
    rules = [str(part.__getstate__(), "utf-8") for part in (inner.normalizer, inner.pre_tokenizer) if part is not None]
    told = "".join(rules).replace(_TO_THE_NEXT_CHARACTER, "")
    by_pieces = type(inner.model).__name__ in _PIECES
    if _LOOKS_AHEAD.search(told) or getattr(inner.model, "dropout", None):
        return None
    if not by_pieces and not any(kind in told for kind in _SPLIT_AT_SPACES):
        return None
    vocabulary = "\0".join(inner.get_vocab(True))
    for written, meant in {"Ġ": " ", "Ċ": "\n"}.items() if '"ByteLevel"' in told else [("▁", " ")]:
        vocabulary = vocabulary.replace(written, meant)
    safe = [cut for cut, inside in _CUTS.items() if not inside.search(vocabulary)]
    if inner.normalizer is not None and _LINE_ENDS_A_WORD in safe:  # it may make spaces of lines' ends
        safe.remove(_LINE_ENDS_A_WORD)
    return re.compile("|".join(safe)) if safe else None
