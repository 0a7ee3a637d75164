"""Whose turn it is to run a model: one call of a Lens at a time, and none from inside another.

While a call is on, hooks of the Lens lie on the model's own modules, where every forward pass of the model meets them.
They belong to that call alone: another thread that runs the bare model meanwhile gets what it would have got anyway,
and a forward pass inside a forward pass, which hooks would take for the first one's, is refused. What a call left that
ended without taking it away (two interrupts, one after the other, can do that) the next forward pass finds and clears.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from interp.errors import InterpError
from interp.undoing import Gate, Undo, close_what_died

C = TypeVar("C", bound=Callable[..., Any])


class Calls(threading.local):
    """What each thread is doing with one Lens."""

    def __init__(self) -> None:
        self.depth = 0
        """How many of its calls are inside one another."""
        self.now = Undo()
        """What takes back what the innermost one changed."""


class Called(Protocol):
    """What a Lens knows of its calls, and looks at as one begins."""

    _calls_of: Calls

    def _look(self) -> None: ...


def whole(call: C) -> C:
    """A method of a Lens that looks at the model as it begins and takes what it then knows for true until it ends.

    What it changed outside itself is taken back then, however it ends.
    """

    @functools.wraps(call)
    def alone(lens: Called, *args: Any, **kwargs: Any) -> Any:
        close_what_died()
        lens._look()
        undo, calls = Undo(sys._getframe()), lens._calls_of
        try:
            try:
                undo.later(calls.__dict__.update, {"depth": calls.depth, "now": calls.now})
                # which torch leaves off where an interrupt meets the end of one of the model's own `no_grad`
                undo.later(torch.set_grad_enabled, torch.is_grad_enabled())
                calls.depth, calls.now = calls.depth + 1, undo
                return call(lens, *args, **kwargs)
            finally:
                undo.now()
        finally:
            undo.now()

    return cast(C, alone)


class Turn:
    """The lock of a model, which all its Lenses share, and the call that runs it."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.call: Undo | None = None

    @property
    def inside(self) -> bool:
        """Whether this thread is in the middle of a Lens call of the model."""
        call = self.call
        if call is None or call.thread != threading.get_ident():
            return False
        if not call.running:
            call.now()
        return self.call is not None

    def take(self, undo: Undo, call: Undo) -> None:
        """Begin to run the model in a call, until the end of `undo`; another call of this thread has to end first."""
        if self.inside:
            raise InterpError("the Lens was called from inside one of its own hooks; call it after the hook returns.")
        self.gate.hold(undo)
        undo.later(setattr, self, "call", None)
        self.call = call


_turns: WeakKeyDictionary[nn.Module, Turn] = WeakKeyDictionary()


def turn_of(model: nn.Module) -> Turn:
    """The turn of a model, the same for every Lens around it."""
    return _turns.setdefault(model, Turn())


def refuse_nesting(model: nn.Module, undo: Undo, call: Undo) -> None:
    """Until the end of `undo`, raise where this thread runs the model from inside its own forward pass.

    One pass after another is another matter: `generate` makes many, and guided decoding two at each token. A pass that
    begins when the call has ended clears what that left.
    """
    running = False

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal running
        if not call.running:
            call.now()
            return
        if running:
            raise InterpError(
                "a hook ran the model inside the model's own forward pass, where the hooks of the Lens would take the "
                "one for the other; run it before the call or after."
            )
        running = True

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal running
        running = False

    undo.hook(model, enter, pre=True)
    undo.hook(model, leave, always_call=True)
