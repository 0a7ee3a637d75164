"""One scene and all its questions as one sequence: the picture is read once, and no question sees another.

Positions and mask make every question what it would be by itself after the picture: this is a matter of cost, some 24
tokens a question where there are eight, and not 68.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.subjects.emoji.questions import Question

BEFORE = "<|im_start|>user\n"
AFTER = "\n{question}<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "{answer}<|im_end|>"
IGNORED = -100


@dataclass(frozen=True)
class Packed:
    """Scenes with their questions, padded on the right; [scene, token] but for the mask."""

    ids: Tensor
    """Tokens, with the padding token in the picture's places."""
    pictures: Tensor
    """Whether a token is one of the picture's."""
    positions: Tensor
    mask: Tensor
    """Whether a token (third axis) sees another (last axis), [scene, 1, token, token]."""
    targets: Tensor
    """The token that follows, for what predicts an answer; else `IGNORED`."""
    question: Tensor
    """Of a target: the number of its question among its scene's; else -1."""


def pack(tokenizer: Any, scenes: list[list[Question]], picture_tokens: int) -> Packed:
    """Questions of several scenes, laid out for one call of the language model."""
    rows = [_row(tokenizer, questions, picture_tokens) for questions in scenes]
    length = max(len(row.ids) for row in rows)
    filled = [_filled(row, length, tokenizer.pad_token_id) for row in rows]
    return Packed(*(torch.cat(parts) for parts in zip(*(vars(row).values() for row in filled), strict=True)))


def _row(tokenizer: Any, questions: list[Question], picture_tokens: int) -> Packed:
    """One scene's sequence, its tensors without a scene axis."""
    before = tokenizer.encode(BEFORE, add_special_tokens=False)
    ids = [*before, *[tokenizer.pad_token_id] * picture_tokens]
    start = len(ids)
    owner, targets, asked = [-1] * start, [IGNORED] * start, [-1] * start
    positions = list(range(start))
    for number, question in enumerate(questions):
        prompt = tokenizer.encode(AFTER.format(question=question.text), add_special_tokens=False)
        answer = tokenizer.encode(ANSWER.format(answer=question.answer), add_special_tokens=False)
        own = [*prompt, *answer[:-1]]
        ids += own
        positions += range(start, start + len(own))
        owner += [number] * len(own)
        targets += [*[IGNORED] * (len(prompt) - 1), *answer]
        asked += [*[-1] * (len(prompt) - 1), *[number] * len(answer)]
    owners = torch.tensor(owner)
    seen = (owners[:, None] == owners) | (owners == -1)
    pictures = torch.zeros(len(ids), dtype=torch.bool)
    pictures[len(before) : start] = True
    return Packed(
        torch.tensor(ids), pictures, torch.tensor(positions), seen.tril(), torch.tensor(targets), torch.tensor(asked)
    )


def _filled(row: Packed, length: int, padding: int) -> Packed:
    """The row with padding, which sees itself alone, and a scene axis."""
    more = length - len(row.ids)
    mask = torch.eye(length, dtype=torch.bool)
    mask[: len(row.ids), : len(row.ids)] = row.mask

    def longer(values: Tensor, value: int) -> Tensor:
        return torch.cat([values, torch.full((more,), value, dtype=values.dtype)])[None]

    return Packed(
        longer(row.ids, padding), longer(row.pictures, False), longer(row.positions, 0), mask[None, None],
        longer(row.targets, IGNORED), longer(row.question, -1),
    )  # fmt: skip
