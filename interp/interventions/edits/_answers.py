"""What an edit answers when it is asked about tokens, checked: its author may be new to it.

Groups are put together with those of other edits and rows with what was known before, so a number too many or a shape
that is off would edit other tokens than were meant.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import torch

from interp.errors import InterpError
from interp.interventions.edits.base import AttentionEdit, NewTokens

Tensor = torch.Tensor


FEW_TOKENS = 8
"""New tokens, of all texts, that are looked at one by one."""


class Answer:
    """What an edit says of tokens that just arrived."""

    def __init__(self, edit: AttentionEdit, text: NewTokens) -> None:
        self.groups = groups_of(edit, text).to(torch.uint8)
        self.rows = rows_of(edit, text)
        self.few = self.rows.numel() <= FEW_TOKENS
        """Whether so few tokens came that it is worth a look which of their rows the edit may change."""
        self.everywhere = edit.same_in_all_layers(text)

    @cached_property
    def _may(self) -> list[bool]:
        return [may for row in self.rows.tolist() for may in row]

    @cached_property
    def none(self) -> bool:
        """Whether it is known that the edit may change no row."""
        return self.few and not any(self._may)

    @cached_property
    def all(self) -> bool:
        """Whether it is known that it may change all of them."""
        return self.few and all(self._may)


def groups_of(edit: AttentionEdit, text: NewTokens) -> Tensor:
    """The group of each new token's key."""
    groups = _one_a_token(edit, "groups", edit.groups(text), text)
    low, high = groups.aminmax()
    if groups.is_floating_point() or int(low) < 0 or int(high) >= edit.group_count:
        raise InterpError(
            f"{edit.name}: groups should be whole numbers from 0 to {edit.group_count - 1}, found {groups.dtype} from "
            f"{groups.min().item()} to {groups.max().item()}."
        )
    return groups


def rows_of(edit: AttentionEdit, text: NewTokens) -> Tensor:
    """Which of the new tokens' rows may change."""
    rows = _one_a_token(edit, "rows", edit.rows(text), text)
    if rows.dtype != torch.bool:
        raise InterpError(f"{edit.name}: rows should be true or false (torch.bool), found {rows.dtype}.")
    return rows


def _one_a_token(edit: AttentionEdit, what: str, answer: Any, text: NewTokens) -> Tensor:
    wanted = [text.ids.shape[0], text.new]
    if not isinstance(answer, Tensor) or list(answer.shape) != wanted:
        found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InterpError(f"{edit.name}: {what} should be a tensor {wanted}, one entry a new token; found {found}.")
    return answer


def stretching(edit: AttentionEdit, what: str, answer: Any, *shape: int) -> Tensor:
    """Factors, scales or biases of an edit, seen to stretch to `[batch, head, row, group]`."""
    fits = isinstance(answer, Tensor) and answer.ndim <= len(shape)
    if not fits or any(own not in (1, n) for own, n in zip(reversed(answer.shape), reversed(shape), strict=False)):
        found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InterpError(
            f"{edit.name}: {what} should stretch to {list(shape)} (batch, head, row, group), found {found}."
        )
    return cast(Tensor, answer)
