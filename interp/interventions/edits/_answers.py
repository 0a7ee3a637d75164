"""What an edit answers when it is asked about tokens, checked: its author may be new to it.

Groups are put together with those of other edits and rows with what was known before, so a number too many or a shape
that is off would edit other tokens than were meant.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from interp.errors import InterpError
from interp.interventions.edits.base import AttentionEdit, NewTokens

Tensor = torch.Tensor


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
