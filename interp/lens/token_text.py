"""Which stretch of a text each token is, and which tokens continue a text.

A token's text depends on its neighbours: a piece of sentencepiece says "▁is" for " is", one of WordPiece "##able" for
"able", and a character of several bytes may be spread over several tokens. So tokens are never decoded one by one.
"""

from __future__ import annotations

from typing import Any

SPACES = ("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")
"""What stands for a space in vocabularies of sentencepiece and of bytes."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
MOST_BYTES = 4
"""Bytes of the longest character, each of which may be a token."""
ANCHORS = ("a", "\n", ".", "0")


def of_text(tokenizer: Any, text: str) -> list[str] | None:
    """The stretches of a text that its tokens cover; joined, and without special tokens, they are the text.

    A special token that the tokenizer adds is its name. A character spread over several tokens is with the last of
    them. None where the tokenizer does not tell: one written in Python, or one whose tokens are whole words.
    """
    if not getattr(tokenizer, "is_fast", False) or _no_decoder(tokenizer):
        return None
    read = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = list(read.input_ids), list(read.offset_mapping)
    special = set(tokenizer.all_special_ids)
    covering = [i for i, (start, end) in enumerate(offsets) if end > start]
    pieces = [_alone(tokenizer, token) if token in special else "" for token in ids]
    done = 0
    for number, i in enumerate(covering):
        last = number + 1 == len(covering)
        cut = len(text) if last else max(done, min(offsets[i][1], offsets[covering[number + 1]][0]))
        pieces[i], done = text[done:cut], cut
    return pieces


def of_ids(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each of a sequence's tokens, between those before it; of a part of a text, the first keeps its space.

    A character spread over several tokens is with the last of them.
    """
    if _no_decoder(tokenizer):
        return [_alone(tokenizer, token) for token in ids]
    special = set(tokenizer.all_special_ids)
    first = next((i for i, token in enumerate(ids) if token not in special), len(ids))
    pieces = [_alone(tokenizer, token) for token in ids[:first]]
    start, done = first, first
    for at in range(first, len(ids)):
        before, after = (_decoded(tokenizer, ids[start:end]) for end in (done, at + 1))
        grown = after.startswith(before)
        if grown and after.endswith(BROKEN) and at + 1 < len(ids) and at - done + 1 < MOST_BYTES:
            pieces.append("")
            continue
        pieces.append(after[len(before) :] if grown else _alone(tokenizer, ids[at]))
        start, done = done, at + 1
    if ids and first == 0 and not _may_begin_a_text(tokenizer, ids, special):
        form = tokenizer.convert_ids_to_tokens(ids[0])
        if form.startswith(SPACES[0]) and not pieces[0].startswith(" "):
            pieces[0] = f" {pieces[0]}"
    return pieces


def continuing(tokenizer: Any, before: str | None, text: str) -> list[int]:
    """Ids of a text that goes on after another, as if both were one text, if that leaves the first one's tokens alone.

    Else, or where what lies before is not known as text, those of the text alone; but without the space that a
    tokenizer puts before every text (sentencepiece), since a text that goes on has none there.
    """
    if before and (rest := _split(tokenizer, before, text)):
        return rest
    alone = _bare(tokenizer, text)
    word = _bare(tokenizer, text.lstrip() or "a")
    if alone and word and tokenizer.convert_ids_to_tokens(word[0]).startswith(SPACES):
        return next((rest for anchor in ANCHORS if (rest := _split(tokenizer, anchor, text))), alone)
    return alone


def _split(tokenizer: Any, before: str, text: str) -> list[int]:
    """The ids of `text` after `before`; none where a token spans the boundary, or where that cannot be told."""
    if not getattr(tokenizer, "is_fast", False):
        first, both = _bare(tokenizer, before), _bare(tokenizer, before + text)
        known = tokenizer.unk_token_id not in first
        return both[len(first) :] if known and first and both[: len(first)] == first else []
    first = _bare(tokenizer, before)
    joined = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
    both, offsets = list(joined.input_ids), joined.offset_mapping
    if not first or both[: len(first)] != first or offsets[len(first) - 1][1] > len(before):
        return []
    return both[len(first) :]


def _bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _may_begin_a_text(tokenizer: Any, ids: list[int], special: set[int]) -> bool:
    """Whether ids without special tokens first could be a whole text; a single token is looked at by itself."""
    begun = list(tokenizer("a").input_ids)
    return len(ids) > 1 and not (begun and begun[0] in special)


def _no_decoder(tokenizer: Any) -> bool:
    """Whether tokens are words and nothing says what lies between them, so that each is printed as it stands."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    return inner is not None and inner.decoder is None


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text


def _alone(tokenizer: Any, token: int) -> str:
    return _decoded(tokenizer, [token])
