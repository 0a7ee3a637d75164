"""What a model is made to read: random sequences, stretches of text, demonstrations before a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int

from interp.errors import InterpError
from interp.icl.language._layers import one_text
from interp.lens.foreign import ids_of
from interp.lens.protocol import TextLens

Tensor = torch.Tensor

OUTER_SHARE = 0.05
"""Share of the ids at either end of the vocabulary that random sequences leave out."""


def random_tokens(lens: TextLens, samples: int, length: int, seed: int) -> Int[Tensor, "sample length"]:
    """Rows of distinct random ids from the middle of the vocabulary.

    Byte-pair vocabularies are in order of merging, so the ends hold the most and the least frequent tokens; special
    tokens are left out too. Raises InterpError where the vocabulary is too small.
    """
    outer = int(OUTER_SHARE * lens.cfg.d_vocab)
    special = set() if lens.tokenizer is None else set(lens.tokenizer.all_special_ids)
    ids = torch.tensor([i for i in range(outer, lens.cfg.d_vocab - outer) if i not in special])
    if len(ids) < length:
        raise InterpError(
            f"{length} distinct random tokens are needed and {lens.cfg.model_name} has {len(ids)} that are neither "
            "special nor among the most or least frequent; ask for a shorter sequence."
        )
    generator = torch.Generator().manual_seed(seed)
    rows = [ids[torch.randperm(len(ids), generator=generator)[:length]] for _ in range(samples)]
    return torch.stack(rows).to(lens.device)


def after_bos(lens: TextLens, rows: Int[Tensor, "sample pos"]) -> Int[Tensor, "sample pos"]:
    """`rows` with the tokenizer's first token before each, where it names one: a place on which heads can rest."""
    bos = None if lens.tokenizer is None else lens.tokenizer.bos_token_id
    if bos is None:
        return rows
    return torch.cat([torch.full_like(rows[:, :1], bos), rows], 1)


def rows_of_text(
    lens: TextLens, text: str | Sequence[str] | Tensor, length: int, most: int, asked_by: str
) -> Int[Tensor, "sample length"]:
    """At most `most` rows of `length` tokens, special tokens that the tokenizer puts first included.

    One text is cut into consecutive stretches, of several texts each gives its beginning, and tokens `[sample, pos]`
    are rows already. Raises InterpError where a text is shorter than `length`, and without any text.
    """
    one_text(lens, asked_by)
    if most < 1 or not len(text):
        raise InterpError(f"{asked_by} has nothing to read; pass some text and ask for one row of it at least.")
    if isinstance(text, str):
        first = special_tokens(lens)
        tokens = lens.to_tokens(text, truncate=len(first) + most * max(1, length - len(first)))[0]
        stretches = tokens[len(first) :].split(length - len(first))
        whole = [stretch for stretch in stretches if len(first) + len(stretch) == length]
        rows = [torch.cat([first, stretch]) for stretch in (whole or stretches)[:most]]
    else:
        rows = [row[0] for row in lens.rows(text, truncate=length)[0][:most]]
    if short := next(((i, len(row)) for i, row in enumerate(rows) if len(row) < length), None):
        raise InterpError(
            f"{asked_by} needs {length} tokens of each text and text {short[0]} has {short[1]}; pass longer texts."
        )
    return torch.stack([row[:length] for row in rows])


def special_tokens(lens: TextLens) -> Int[Tensor, " pos"]:
    """What the tokenizer puts before a text; nothing without a tokenizer."""
    ids = () if lens.tokenizer is None else start_tokens(lens.tokenizer)
    return torch.tensor(ids, dtype=torch.long, device=lens.device)


def start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Ids of the special tokens that a tokenizer puts before a text; those that would end it are left out."""
    text = "text"
    whole, bare = (ids_of(tokenizer, text, special) for special in (True, False))
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
    if at is None:
        raise InterpError(
            "this tokenizer reads a text otherwise between special tokens than alone; pass tokens instead."
        )
    return tuple(whole[:at])


@dataclass(frozen=True)
class Prompt:
    """A query alone and after demonstrations, with the same special tokens first."""

    first: Int[Tensor, " special"]
    demos: tuple[Int[Tensor, " demo"], ...]
    query: Int[Tensor, " query"]

    @classmethod
    def of(cls, lens: TextLens, demos: str | Tensor | Sequence[str | Tensor], query: str | Tensor) -> Prompt:
        """Texts are tokenised one by one, so that no token spans a boundary; tokens `[pos]` come without special ones.

        Raises InterpError where a demonstration or the query is empty.
        """
        listed = list(demos) if isinstance(demos, (list, tuple)) else [demos]
        parts = [_tokens(lens, part) for part in (*listed, query)]
        if not listed or not all(len(part) for part in parts):
            raise InterpError("an in-context prompt needs demonstrations and a query, and none of them empty.")
        return cls(special_tokens(lens), tuple(parts[:-1]), parts[-1])

    @property
    def zero_shot(self) -> Int[Tensor, "1 pos"]:
        return torch.cat([self.first, self.query])[None]

    @property
    def in_context(self) -> Int[Tensor, "1 pos"]:
        return torch.cat([self.first, *self.demos, self.query])[None]

    @property
    def alone(self) -> list[Int[Tensor, "1 pos"]]:
        """Each demonstration by itself."""
        return [torch.cat([self.first, demo])[None] for demo in self.demos]

    @property
    def is_demo(self) -> Bool[Tensor, " pos"]:
        """True for the tokens of the in-context prompt that are demonstrations."""
        sizes = torch.tensor([len(self.first), sum(map(len, self.demos)), len(self.query)])
        return torch.tensor([False, True, False]).repeat_interleave(sizes).to(self.query.device)


def _tokens(lens: TextLens, part: Any) -> Int[Tensor, " pos"]:
    if isinstance(part, Tensor):
        return part.reshape(-1).to(lens.device)
    if not isinstance(part, str):
        rows = lens.rows(part)[0]
        if len(rows) != 1:
            raise InterpError(f"a demonstration and a query are one text each, and these are {len(rows)}; pass a list.")
        return rows[0][0]
    if lens.tokenizer is None:
        raise InterpError("this Lens has no tokenizer; pass demonstrations and query as tokens.")
    ids = lens.token_ids(part)
    return torch.tensor(ids, dtype=torch.long, device=lens.device)
