"""What a task asks a model: a continuation, or what one costs, with an intervention in force."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interp.runs.generating import generate
from interp.runs.noting import noting
from interp.tasks.looking import Picture, look
from interp.vision.prompts import PLACE

if TYPE_CHECKING:
    from interp.interventions.base import Intervention
    from interp.lens.protocol import InterventionLens


class Said(NamedTuple):
    """A continuation."""

    text: str
    """Without special tokens; untrusted."""
    tokens: tuple[int, ...]
    notes: tuple[str, ...]


class Asking:
    """A model, an intervention or none, and how prompts are put to it; each call acts as `lens.apply` does.

    What was asked before is not asked again: decoding is greedy, and three of POPE's settings ask of the same objects.
    """

    def __init__(self, lens: InterventionLens, intervention: Intervention | None, chat: bool | None) -> None:
        self.lens, self.intervention = lens, intervention
        self.chat = has_template(lens) if chat is None else chat
        self.notes: list[str] = []
        """What was warned of since somebody emptied it, such as that the intervention changed nothing."""
        self._said: dict[Hashable, Said] = {}

    @cached_property
    def untouched(self) -> Asking:
        """The same without the intervention."""
        return self if self.intervention is None else Asking(self.lens, None, self.chat)

    def continued(self, prompt: str, pictures: tuple[Picture, ...], max_new_tokens: int, *, blind: bool = False) -> str:
        """What the model writes after a prompt, greedily, without special tokens."""
        return self.said(prompt, pictures, max_new_tokens, blind=blind).text

    def said(self, prompt: str, pictures: tuple[Picture, ...], max_new_tokens: int, *, blind: bool = False) -> Said:
        """The same, with its tokens."""
        key = (prompt, pictures, max_new_tokens, blind)
        if key not in self._said:
            images = [look(picture, blind=blind) for picture in pictures] or None
            places = "" if self.chat or not images else PLACE * len(images) + "\n"
            told = generate(
                self.lens, places + prompt, self.intervention, max_new_tokens, chat=self.chat, images=images
            )
            self._said[key] = Said(str(told["text"]), tuple(told["new_token_ids"]), tuple(told["notes"]))
        said = self._said[key]
        self.notes += said.notes
        return said

    def nats(self, prompt: str, continuation: str, chunk: int = 256) -> np.ndarray:
        """Negative log-likelihood (nats) of each token of a continuation `[token]`, as `lens.score` has it."""
        applied: Any = nullcontext() if self.intervention is None else self.lens.apply(self.intervention)
        with noting() as notes, applied:
            found = self.lens.score(prompt, continuation, chunk=chunk)
        self.notes += notes
        costs: np.ndarray = found[0].double().cpu().numpy()
        return costs


def has_template(lens: InterventionLens) -> bool:
    """Whether a model came with a template for conversations."""
    holders = (getattr(lens, "processor", None), lens.tokenizer)
    return any(getattr(holder, "chat_template", None) for holder in holders)
