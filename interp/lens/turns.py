"""Whose turn it is to run a model: one call of a Lens at a time, and none from inside another.

While a call is on, hooks of the Lens lie on the model's own modules, where every forward pass of the model meets them.
They belong to that call alone: another thread that runs the bare model meanwhile gets what it would have got anyway,
and a forward pass inside a forward pass, which hooks would take for the first one's, is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from interp.errors import InterpError


class Turn:
    """The lock of a model, which all its Lenses share, and whether one of them is running it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.thread: int | None = None

    @property
    def inside(self) -> bool:
        """Whether this thread is in the middle of a Lens call of the model."""
        return self.thread == threading.get_ident()

    def take(self, stack: ExitStack) -> None:
        """Begin a call that lasts until `stack` is closed; another one of the same thread has to end first."""
        stack.enter_context(self.lock)
        if self.inside:
            raise InterpError("the Lens was called from inside one of its own hooks; call it after the hook returns.")
        self.thread = threading.get_ident()
        stack.callback(setattr, self, "thread", None)


_turns: WeakKeyDictionary[nn.Module, Turn] = WeakKeyDictionary()


def turn_of(model: nn.Module) -> Turn:
    """The turn of a model, the same for every Lens around it."""
    return _turns.setdefault(model, Turn())


def mine(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A forward (pre-)hook that acts in the thread that made it and lets all others pass."""
    own = threading.get_ident()

    def here(module: nn.Module, *given: Any) -> Any:
        return hook(module, *given) if threading.get_ident() == own else None

    return here


def refuse_nesting(model: nn.Module, stack: ExitStack) -> None:
    """Until `stack` is closed, raise where this thread runs the model from inside its own forward pass.

    One pass after another is another matter: `generate` makes many, and guided decoding two at each token.
    """
    running = False

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal running
        if running:
            raise InterpError(
                "a hook ran the model inside the model's own forward pass, where the hooks of the Lens would take the "
                "one for the other; run it before the call or after."
            )
        running = True

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal running
        running = False

    stack.callback(model.register_forward_pre_hook(mine(enter)).remove)
    stack.callback(model.register_forward_hook(mine(leave), always_call=True).remove)
