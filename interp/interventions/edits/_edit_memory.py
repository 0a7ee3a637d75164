"""What attention edits remember of the texts that they are at work on, and the cache that carries it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int

from interp.cache.lens_cache import LensCache
from interp.errors import InterpError
from interp.interventions.edits._answers import Answer
from interp.interventions.edits.base import AttentionEdit

Tensor = torch.Tensor
Place = tuple[int, int]
"""A layer, and the number of an edit among those in force."""


class EditMemory:
    """Of every token so far its id and, in each layer, what edits said of it when it arrived."""

    def __init__(self) -> None:
        self.ids: Int[Tensor, "batch token"] | None = None
        self._groups: dict[Place, Int[Tensor, "batch token"]] = {}
        self._rows: dict[Place, Bool[Tensor, "batch token"]] = {}
        self._later: dict[int, list[Answer]] = {}
        """By the number of an edit, what it said of the newest tokens that holds in all of its layers: it is put to
        what they know when somebody asks."""
        self.version = 0
        """Another one once what layers know became something else than what it was with such answers put to it."""
        self.prompt: int | None = None
        """How many columns are a prompt, where all that follows was generated or is read as if it were."""

    def goes_on(self, seen: int, ids: Int[Tensor, "batch new"]) -> Int[Tensor, "batch token"]:
        """Take in tokens that follow the first `seen` ones, forgetting what came after those; all ids so far."""
        known = 0 if self.ids is None else self.ids.shape[1]
        if known < seen:
            raise InterpError(
                f"the cache holds {seen} tokens, of which {seen - known} were read without the attention edits in "
                "force; start a new one inside the block."
            )
        if known > seen:
            self.keep(seen)
        self.ids = ids if seen == 0 or self.ids is None else torch.cat([self.ids, ids], 1)
        return self.ids

    def generated(self, new: int) -> int:
        """How many of the newest `new` tokens are no part of a prompt: one alone that goes on, where nobody says."""
        total = 0 if self.ids is None else self.ids.shape[1]
        if self.prompt is None:
            return int(new == 1 < total)
        return min(new, max(0, total - self.prompt))

    @property
    def tokens(self) -> int:
        """How many tokens came so far."""
        return 0 if self.ids is None else self.ids.shape[1]

    def learn(self, place: Place, answer: Answer) -> bool:
        """Put what an edit said of the newest tokens to what it said of those before. Returns whether that was done in
        all layers: where it is the same in all of them, and they know of tokens before."""
        if answer.everywhere and place in self._groups:
            self._later.setdefault(place[1], []).append(answer)
            return True
        self._settle()
        self.version += 1
        self._put(place, [answer])
        return False

    def __contains__(self, place: Place) -> bool:
        return place in self._groups

    def groups(self, place: Place) -> Int[Tensor, "batch token"]:
        self._settle()
        return self._groups[place]

    def rows(self, place: Place) -> Bool[Tensor, "batch token"]:
        self._settle()
        return self._rows[place]

    def _settle(self) -> None:
        later, self._later = self._later, {}
        for place in self._groups:
            if answers := later.get(place[1]):
                self._put(place, answers)

    def _put(self, place: Place, answers: Sequence[Answer]) -> None:
        for known, new in ((self._groups, [a.groups for a in answers]), (self._rows, [a.rows for a in answers])):
            parts = [known[place], *new] if place in known else new
            known[place] = parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device) for part in parts], 1)

    def keep(self, tokens: int) -> None:
        """Forget what came after the first `tokens` ones."""
        self._map(lambda kept: kept[:, :tokens])

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        self._settle()
        self.version += 1
        self.ids = None if self.ids is None else function(self.ids)
        for known in (self._groups, self._rows):
            known.update({place: function(tensor) for place, tensor in known.items()})

    def take(self, rows: Int[Tensor, " text"]) -> None:
        """Go on with `rows` of the batch."""
        self._map(lambda kept: kept.index_select(0, rows.to(kept.device)))


class EditedCache(LensCache):
    """The cache of texts that are read under attention edits."""

    def __init__(self, config: Any, keeper: Any, edits: tuple[AttentionEdit, ...]) -> None:
        super().__init__(config, keeper)
        self.edits, self.memory = edits, EditMemory()

    def crop(self, tokens: int) -> None:
        super().crop(tokens)
        self.memory.keep(self.get_seq_length())

    def reset(self) -> None:
        super().reset()
        self.memory = EditMemory()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.memory.take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = self._rows().repeat_interleave(repeats)
        super().batch_repeat_interleave(repeats)
        self.memory.take(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        rows = self._rows()[indices.cpu()]
        super().batch_select_indices(indices)
        self.memory.take(rows)
