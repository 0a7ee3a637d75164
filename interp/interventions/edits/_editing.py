"""Attention edits in force during a Lens call: what has arrived, and which keys of a layer belong to which group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from interp_kernels.group_reweighted_attention.edit import MOST_GROUPS
from jaxtyping import Bool, Float, Int
from torch import nn

from interp.errors import InterpError, UnsupportedModelError
from interp.interventions.edits._edit_memory import EditMemory
from interp.interventions.edits._reweighting import EditedEvent, Member, Reweighting, edited
from interp.interventions.edits.base import AttentionEdit, NewTokens
from interp.seam.call import AttentionCall
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass
class EditAccount:
    """What edits in force came to, by their number: whether they changed anything, and the longest text they met."""

    changed: dict[int, Tensor] = field(default_factory=dict)
    longest: int = 0

    def note(self, number: int) -> Callable[[Tensor], None]:
        def add(changed: Tensor) -> None:
            before = self.changed.get(number)
            self.changed[number] = changed if before is None else before.to(changed.device) | changed

        return add

    def silent(self, edits: Sequence[AttentionEdit]) -> Iterator[str]:
        """What a user should know of edits that were in force, in a sentence each."""
        for number, edit in enumerate(edits):
            unmet = edit.unmet(self.longest) if self.longest else None
            if not self.longest:
                yield f"{edit.name}: the model did not run inside apply(), so nothing was changed."
            elif not edit.idle and not self.changed.get(number, False):
                yield f"{edit.name} changed nothing: {unmet or 'no row that it edits paid attention to its keys'}."
            elif unmet:
                yield f"{edit.name}: {unmet}, the longest text that it met."


class Editing:
    """Edits in force for the length of one Lens call."""

    def __init__(
        self, edits: Sequence[AttentionEdit], memory: EditMemory, seen: Callable[[], int], account: EditAccount
    ) -> None:
        self.edits, self.memory, self.seen, self.account = edits, memory, seen, account
        self.ids = self.positions = torch.zeros(0)
        self.new = 0

    @property
    def names(self) -> str:
        return " and ".join(dict.fromkeys(edit.name for edit in self.edits))

    def arrive(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the model: new tokens come in."""
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        if ids is None:
            raise InterpError(f"{self.names}: an attention edit needs token ids, and this call brings none.")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise UnsupportedModelError(
                f"{self.names}: a prepared attention mask does not tell where in its text a token stands; pass a "
                "padding mask [batch, tokens]."
            )
        self.ids, self.new = self.memory.goes_on(self.seen(), ids), ids.shape[1]
        real = torch.ones_like(self.ids) if mask is None else mask.to(self.ids)
        self.positions = (real.cumsum(-1) - 1).masked_fill(real == 0, -1)
        self._check_one_text_a_row(kwargs.get("position_ids"), real[:, -self.new :] != 0)
        self.account.longest = max(self.account.longest, int(self.positions.max()) + 1)

    def _check_one_text_a_row(
        self, given: Int[Tensor, "batch_or_1 new"] | None, real: Bool[Tensor, "batch new"]
    ) -> None:
        """Raise InterpError where position ids start anew among the real tokens of a row."""
        if given is None or given.ndim != 2:
            return
        if bool(((given.diff(dim=-1) < 0) & real[:, 1:] & real[:, :-1]).any()):
            raise InterpError(
                f"{self.names}: position_ids start anew within a row, as for several texts packed into one, and an "
                "attention edit takes a row for one text; give each text a row of its own."
            )


class LayerEdits:
    """The edits that act in one layer, during one Lens call."""

    def __init__(self, layer: int, editing: Editing) -> None:
        self.layer, self.editing = layer, editing
        self.acting = [(i, edit) for i, edit in enumerate(editing.edits) if edit.acts_in(layer) and not edit.idle]
        self.residual: Tensor | None = None

    @property
    def reads_residual(self) -> bool:
        return any(edit.reads_residual for _, edit in self.acting)

    def enter(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the block: the residual stream comes in."""
        self.residual = args[0] if args else kwargs["hidden_states"]

    def reweighting(
        self, q: Float[Tensor, "batch head query d_head"], keys: int, places: Int[Tensor, "batch stored key"] | None
    ) -> Reweighting:
        """What the edits do to the attention of queries q over `keys` keys.

        places: the column in the input of every key, where they are not simply the newest tokens so far.
        """
        self._learn()
        heads = q.shape[1]
        known = [self.editing.memory.groups[self.layer, i] for i, _ in self.acting]
        groups, of = met(known, [edit.group_count for _, edit in self.acting], self.editing.names)
        if places is None:
            groups = groups[:, None, -keys:]
        else:
            groups = groups[:, None].expand(-1, places.shape[1], -1).gather(2, places.long().to(groups.device))
            groups = groups.repeat_interleave(heads // places.shape[1], 1)
        rows, note = self.editing.memory.rows, self.editing.account.note
        members = [
            Member(edit, own.to(q.device), rows[self.layer, i].to(q.device), _among(edit.heads, heads, q), note(i))
            for (i, edit), own in zip(self.acting, of, strict=True)
        ]
        return Reweighting(groups.to(q.device), len(of[0]), members)

    def of(self, event: AttentionEvent, places: Int[Tensor, "batch stored key"] | None = None) -> EditedEvent:
        """A layer's attention as the edits leave it."""
        return edited(event, self.reweighting(event.q, event.k.shape[2], places))

    def attend(
        self,
        call: AttentionCall,
        event: Callable[[AttentionCall], AttentionEvent],
        own: Float[Tensor, "batch query head d_value"],
        weights: Any,
    ) -> tuple[Tensor, Any]:
        """z and weights of a call for which the model itself computes `own` and `weights`, which may be None.

        Raises UnsupportedModelError where the model's attention does something that the kernel does not.
        """
        names = self.editing.names
        if call.module.training and call.rest.get("dropout"):
            raise UnsupportedModelError(
                f"{names} does not go with attention dropout, which falls on a pattern that is not kept: put the model "
                "into eval mode."
            )
        try:
            asked = event(call)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{names} cannot act here: {error}") from None
        assert isinstance(asked, EditedEvent)
        z = asked.reweighting.attend(asked, own)
        return z, None if weights is None else asked.reweighting.pattern(weights)

    def attend_stored(self, event: AttentionEvent, mass: bool) -> tuple[Tensor, Tensor | None]:
        """z of attention over what a cache policy left, and if asked for the attention that each key receives."""
        assert isinstance(event, EditedEvent)
        return event.reweighting.attend(event), event.column_mass if mass else None

    def pattern(
        self, call: AttentionCall, pattern: Float[Tensor, "batch head query key"]
    ) -> Float[Tensor, "batch head query key"]:
        """A pattern in the open, edited."""
        return self.reweighting(call.q, call.k.shape[2], call.places).pattern(pattern)

    def _learn(self) -> None:
        """Ask the edits about the tokens that just arrived, once."""
        editing = self.editing
        for i, edit in self.acting:
            known = editing.memory.groups.get((self.layer, i))
            if known is not None and known.shape[1] == editing.ids.shape[1]:
                continue
            residual = self.residual if edit.reads_residual else None
            text = NewTokens(self.layer, editing.new, editing.positions, editing.ids, residual)
            editing.memory.learn((self.layer, i), edit.groups(text), edit.rows(text))


def _among(numbers: Any, count: int, like: Tensor) -> Bool[Tensor, " head"] | None:
    if numbers is None:
        return None
    return torch.isin(torch.arange(count, device=like.device), torch.tensor(numbers, device=like.device))


def met(known: Sequence[Tensor], counts: Sequence[int], names: str) -> tuple[Tensor, list[Tensor]]:
    """Groups `[batch, token]` that several edits make together, and each edit's own group of the keys in each of them.

    Raises InterpError where they make more than the kernel tells apart.
    """
    together = torch.zeros_like(known[0], dtype=torch.long)
    for groups, count in zip(known, counts, strict=True):
        together = together * count + groups
    found = torch.arange(prod(counts), device=together.device)
    if len(found) > MOST_GROUPS:  # not all of them need occur
        found, together = together.unique(return_inverse=True)
    if len(found) > MOST_GROUPS:
        raise InterpError(
            f"{names}: where these edits meet they sort keys into {len(found)} groups, and at most {MOST_GROUPS} can "
            "be told apart; give them fewer tokens, or layers of their own."
        )
    of: list[Tensor] = []
    for count in reversed(counts):
        of.insert(0, found % count)
        found = found // count
    return together, of
