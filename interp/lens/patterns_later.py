"""Patterns of a run whose cache does not store them: computed from queries, keys and mask when somebody asks.

A pattern grows with the square of the text, so `run_with_cache()` without a filter stores none. It stores queries and
keys, though, and the attention event that holds them says what the pattern was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from interp.seam.event import AttentionEvent
from interp.seam.points import live
from interp.undoing import undoing

Tensor = torch.Tensor
KEPT_ELSEWHERE = ("names_filter", "device", "pos_slice", "past_key_values", "use_cache")
"""Keywords of a run that stores less, or elsewhere, or whose keys are not those of its tokens alone."""


class Later(Protocol):
    """Computes the pattern of an attention, named by its room (`blocks.0.attn.`), or None for one that was not kept."""

    def __call__(self, room: str) -> Tensor | None: ...

    def to(self, device: Any) -> Later: ...


@dataclass(frozen=True)
class Changed:
    """Patterns with something done to each of them."""

    later: Later
    change: Callable[[Tensor], Tensor]

    def __call__(self, room: str) -> Tensor | None:
        pattern = self.later(room)
        return None if pattern is None else self.change(pattern)

    def to(self, device: Any) -> Changed:
        """The same, computed on another device."""
        return Changed(self.later.to(device), self.change)


def of_one_text(pattern: Tensor) -> Tensor:
    """A pattern without its batch axis, where that is of one text."""
    return pattern[0] if pattern.shape[0] == 1 else pattern


@dataclass
class LaterPatterns:
    """The attention events of one run, by the room of their points."""

    events: dict[str, AttentionEvent] = field(default_factory=dict)

    def __call__(self, room: str) -> Tensor | None:
        """The pattern `[batch, head, pos, key]`, None where it was not kept."""
        event = self.events.get(room)
        return None if event is None else event.pattern().to(event.q.dtype)

    def to(self, device: Any) -> LaterPatterns:
        """The same, computed on another device."""
        return LaterPatterns({room: _moved(event, device) for room, event in self.events.items()})

    @contextmanager
    def collected(
        self, points: Mapping[str, nn.Module], hooks: Callable[..., Any], run: Mapping[str, Any]
    ) -> Iterator[None]:
        """Keep the events of what runs in this block, called with the keywords `run`.

        Args:
            points: the hook points of a lens by name.
            hooks: its method of that name.
            run: None is kept of a run that stores less, or elsewhere; nor of a layer whose scores or pattern are
                hooked, since hooks may change them.
        """
        if any(run.get(name) is not None and run[name] is not False for name in KEPT_ELSEWHERE):
            yield
            return
        events = {name: point for name, point in points.items() if name.endswith("attn.hook_event") and not live(point)}
        keep = partial(self._keep, points)
        with hooks(fwd_hooks=[(name, keep) for name in events]), undoing() as undo:  # inside, other threads wait
            for point in events.values():
                undo.later(setattr, point, "where_it_can", False)
                point.where_it_can = True  # type: ignore[assignment]  # for torch it is a tensor
            yield

    def _keep(self, points: Mapping[str, nn.Module], event: AttentionEvent, hook: Any) -> None:
        room = hook.name.removesuffix("hook_event")
        if not any(live(points.get(f"{room}{name}")) for name in ("hook_attn_scores", "hook_pattern")):
            self.events[room] = replace(event, q=event.q.detach(), k=event.k.detach(), v=event.v.detach())


def _moved(event: AttentionEvent, device: Any) -> AttentionEvent:
    facts = {name: fact.to(device) if isinstance(fact, Tensor) else fact for name, fact in event.facts.items()}
    sinks = None if event.sinks is None else event.sinks.to(device)
    q, k, v = (x.to(device) for x in (event.q, event.k, event.v))
    return replace(event, q=q, k=k, v=v, facts=facts, sinks=sinks)
