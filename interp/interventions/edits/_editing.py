"""Attention edits in force during a Lens call: what has arrived, and which keys of a layer belong to which group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from interp.errors import InterpError, UnsupportedModelError
from interp.interventions.edits import _few_rows
from interp.interventions.edits._answers import Answer
from interp.interventions.edits._edit_memory import EditMemory
from interp.interventions.edits._members import NONE, Meeting, Member, met
from interp.interventions.edits._remembered import Groups
from interp.interventions.edits._rescoring import ScoredEvent, in_the_open
from interp.interventions.edits._reweighting import EditedEvent, Reweighting, factors_of
from interp.interventions.edits.base import AttentionEdit, LogitEdit, NewTokens, PatternEdit
from interp.seam.call import AttentionCall
from interp.seam.config import LensConfig
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor
E = TypeVar("E", bound=AttentionEdit)


@dataclass
class EditAccount:
    """What edits in force came to, by their number: whether they changed anything, and the longest text they met."""

    changed: dict[int, Tensor] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)
    """Edits that are known to have changed something: nobody looks any more."""
    longest: int = 0

    def note(self, number: int) -> Callable[[Tensor], None] | None:
        """What to tell whether an edit changed anything; None: it did."""
        if number in self.settled:
            return None

        def add(changed: Tensor) -> None:
            before = self.changed.get(number)
            self.changed[number] = changed if before is None else before.to(changed.device) | changed

        return add

    def settle(self) -> None:
        """Look at what was noted so far; once a step, because a GPU is waited for."""
        self.settled |= {i for i, changed in self.changed.items() if i not in self.settled and bool(changed)}

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
        self, edits: Sequence[AttentionEdit], cfg: LensConfig, memory: EditMemory, seen: Callable[[], int],
        account: EditAccount,
    ) -> None:  # fmt: skip
        self.edits, self.cfg, self.memory, self.seen, self.account = edits, cfg, memory, seen, account
        self.ids = self.positions = self.images = torch.zeros(0)
        self.new = self.generated = 0
        self.arrivals = 0
        self.answers: dict[int, Answer] = {}
        """What edits said of the newest tokens that holds in every layer."""
        self.learnt: set[int] = set()
        """Edits whose answer about the newest tokens was remembered in all layers."""
        self.groups = Groups(memory)
        """Of single edits, in steps of generation."""

    @property
    def names(self) -> str:
        return " and ".join(dict.fromkeys(edit.name for edit in self.edits))

    def arrive(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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
        self.generated = self.memory.generated(self.new)
        self.images = self._images(real)
        self._check_one_text_a_row(kwargs.get("position_ids"), real[:, -self.new :] != 0)
        self.account.longest = max(self.account.longest, int(self.positions.max()) + 1)
        self.account.settle()
        self.arrivals += 1
        self.answers.clear()
        self.learnt.clear()

    def _images(self, real: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch token"]:
        """Which of all tokens so far stand for an image: an id that was generated brings none."""
        if self.cfg.image_token_id is None:
            return torch.zeros_like(self.ids, dtype=torch.bool)
        prompted = torch.arange(self.ids.shape[1], device=self.ids.device) < self.ids.shape[1] - self.generated
        return (self.ids == self.cfg.image_token_id) & (real != 0) & prompted

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
    """The edits that act in one layer, during one Lens call: what `interp.seam.edits.Edits` asks for."""

    def __init__(self, layer: int, editing: Editing) -> None:
        self.layer, self.editing, depth = layer, editing, editing.cfg.n_layers
        self.acting = [
            (i, edit) for i, edit in enumerate(editing.edits) if edit.acts_in(layer, depth) and not edit.idle
        ]
        self.logit_edits = [(i, edit) for i, edit in self.acting if isinstance(edit, LogitEdit)]
        self.pattern_edits = [(i, edit) for i, edit in self.acting if isinstance(edit, PatternEdit)]
        self.residual: Tensor | None = None
        self.newest: dict[int, Answer] = {}
        """What each edit said of the newest tokens."""
        self._asked_at, self._idle = 0, False
        self._member: Member[PatternEdit] | None = None
        for i, _ in self.acting:
            editing.groups.layers.setdefault(i, []).append(layer)

    @property
    def reads_residual(self) -> bool:
        return any(edit.reads_residual for _, edit in self.acting)

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the block: the residual stream comes in."""
        self.residual = args[0] if args else kwargs["hidden_states"]

    def meeting(
        self,
        acting: Sequence[tuple[int, E]],
        heads: int,
        keys: int,
        device: torch.device,
        places: Int[Tensor, "batch stored_head key"] | None,
    ) -> Meeting[E]:
        """Edits of one stage as they meet over `keys` keys, on the device of the attention.

        acting: they and their numbers among the edits in force.
        places: the column in the input of every key, where they are not simply the newest tokens so far.
        """
        self._learn()
        if not acting:
            return NONE
        memory, positions = self.editing.memory, self.editing.positions
        known = [memory.groups((self.layer, i)) for i, _ in acting]
        groups, count, of = met(known, [edit.group_count for _, edit in acting], self.editing.names)
        groups = groups.unsqueeze(1)
        if places is not None:
            groups = groups.expand(-1, places.shape[1], -1).gather(2, places.long().clamp_min(0).to(groups.device))
        elif groups.shape[2] > keys:
            groups = groups[:, :, -keys:]
        members = [
            Member(
                edit,
                None if own is None else own.to(device),
                memory.rows((self.layer, i)).to(device),
                self.editing.new if self.newest[i].all else 0,
                positions.to(device),
                _among(edit.heads, heads, device),
                self.editing.account.note(i),
            )
            for (i, edit), own in zip(acting, of, strict=True)
        ]
        return Meeting(groups.to(device), count, members)

    def of(self, event: AttentionEvent, places: Int[Tensor, "batch stored_head key"] | None = None) -> ScoredEvent:
        where = (event.q.shape[1], event.k.shape[2], event.q.device, places)
        logits, pattern = self.meeting(self.logit_edits, *where), self.meeting(self.pattern_edits, *where)
        if not pattern.members:
            return event.become(ScoredEvent, meeting=logits)
        return event.become(EditedEvent, meeting=logits, reweighting=_by_query_head(pattern, event.q.shape[1]))

    def attend(
        self,
        call: AttentionCall,
        event: Callable[[AttentionCall], AttentionEvent],
        own: Float[Tensor, "batch query head d_value"],
        weights: Any,
    ) -> tuple[Tensor, Any]:
        """As `Edits` says.

        Raises UnsupportedModelError where the model's attention does something that the kernel does not.
        """
        if call.module.training and call.rest.get("dropout"):
            raise UnsupportedModelError(
                f"{self.editing.names} does not go with attention dropout, which falls on a pattern that is not kept: put the model "
                "into eval mode."
            )
        new = call.q.shape[2]
        self._learn()
        if new == 1 and self._idle and weights is None:
            return own, None
        try:
            unedited = event(call)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{self.editing.names} cannot act here: {error}") from None
        if new == 1 and weights is None and (z := self._stepped(unedited, own)) is not None:
            return z, None
        asked, rows = self.of(unedited, call.places), self._at_stake(new)
        if rows == new:
            z = asked.attend(own)
        elif rows:
            z = torch.cat([own[:, :-rows], asked.newest(rows).attend(own[:, -rows:])], 1)
        else:
            z = own
        return z, None if weights is None else asked.weights(weights)

    def _at_stake(self, new: int) -> int:
        """How many of the newest `new` rows there are from the first that an edit may change: of a prompt with a long
        image the few words after it."""
        if self._idle or new == 1:
            return new * (not self._idle)
        may = torch.stack([answer.rows.any(0) for answer in self.newest.values()]).any(0)
        return new - int(may.nonzero()[0]) if bool(may.any()) else 0

    def attend_stored(self, event: AttentionEvent, mass: bool) -> tuple[Tensor, Tensor | None]:
        assert isinstance(event, ScoredEvent)
        return event.attend(), event.column_mass if mass else None

    def logits(
        self, call: AttentionCall, scores: Float[Tensor, "batch head query key"], mask: Tensor
    ) -> tuple[Float[Tensor, "batch head query key"], Tensor | None]:
        where = (call.q.shape[1], call.k.shape[2], call.q.device, call.places)
        return in_the_open(self.meeting(self.logit_edits, *where), call.q, scores, mask, call.rest.get("s_aux"))

    def pattern(
        self, call: AttentionCall, pattern: Float[Tensor, "batch head query key"]
    ) -> Float[Tensor, "batch head query key"]:
        heads = call.q.shape[1]
        edits = self.meeting(self.pattern_edits, heads, call.k.shape[2], call.q.device, call.places)
        return _by_query_head(edits, heads).pattern(pattern) if edits.members else pattern

    def _stepped(
        self, event: AttentionEvent, own: Float[Tensor, "batch 1 head d_value"]
    ) -> Float[Tensor, "batch 1 head d_value"] | None:
        """z of a step of generation where one pattern edit is all that acts in this layer, without what is made for
        whoever asks for more; None where there is more to it."""
        (number, edit), editing = self.acting[0], self.editing
        if len(self.acting) > 1 or not isinstance(edit, PatternEdit) or not self.newest[number].all:
            return None
        answer = editing.answers.get(number)
        if answer is None or not _few_rows.fit(event):
            return None
        members = editing.groups.members(number, edit, answer, self.layer, event)
        if members is None:
            return None
        if self._member is None or self._member.note is not None:
            heads = _among(edit.heads, event.q.shape[1], event.q.device)
            self._member = Member(edit, None, None, 1, None, heads, editing.account.note(number))
        few = _few_rows.edited(event, members, partial(factors_of, self._member))
        changed = few.changed.view(len(own), 1, -1, 1)
        return torch.where(changed, few.attend(event).view(own.shape).to(own.dtype), own)

    def _learn(self) -> None:
        """Ask the edits about the tokens that just arrived, once."""
        editing = self.editing
        if self._asked_at == editing.arrivals:
            return
        for i, edit in self.acting:
            answer = editing.answers.get(i)
            if answer is None:
                answer = self._asked(i, edit)
            self.newest[i] = answer
            if i not in editing.learnt and editing.memory.learn((self.layer, i), answer):
                editing.learnt.add(i)
        self._asked_at, self._idle = editing.arrivals, all(answer.none for answer in self.newest.values())

    def _asked(self, number: int, edit: AttentionEdit) -> Answer:
        editing = self.editing
        text = NewTokens(
            self.layer, editing.new, editing.positions, editing.ids, editing.images, editing.generated,
            self.residual if edit.reads_residual else None,
        )  # fmt: skip
        answer = Answer(edit, text)
        if answer.everywhere:
            editing.answers[number] = answer
        return answer


@lru_cache(maxsize=64)
def _among(numbers: Any, count: int, device: torch.device) -> Bool[Tensor, " head"] | None:
    if numbers is None:
        return None
    with torch.inference_mode(False):  # it is kept, and may be needed where gradients are
        return torch.isin(torch.arange(count, device=device), torch.tensor(numbers, device=device))


def _by_query_head(meeting: Meeting[PatternEdit], heads: int) -> Reweighting:
    groups = meeting.groups
    if groups.shape[1] > 1:
        groups = groups.repeat_interleave(heads // groups.shape[1], 1)
    return Reweighting(groups, meeting.count, meeting.members)
