"""Changes that are taken back whatever happens, an interrupt at any line included.

What a call changes outside itself (hooks on a model's modules, names of a registry, modes, locks) is written down
before it is changed. What takes it back may run twice and a half without harm, and it is run twice: an exception that
arrives in the middle of the first time, as Ctrl-C may, meets the second.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import _GeneratorContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from collections import OrderedDict

T = TypeVar("T")
RECORDING = "transformers.utils.output_capturing"
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
MARKS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


class Undo:
    """What takes back all that was changed since it was made, by the thread that made it.

    frame: that of the function whose return ends it, by which a call that died without a word is told from one that
    runs.
    """

    def __init__(self, frame: FrameType | None = None) -> None:
        self.thread = threading.get_ident()
        self.open = True
        """Hooks act only while this is so."""
        self._frame = frame
        self._steps: list[Callable[[], Any]] = []

    def later(self, step: Callable[..., Any], *args: Any) -> None:
        """Have `step(*args)` run at the end, the last that was added first.

        Ask before the change is made. The step may find the change made, half made, or not made, and may run again.
        """
        self._steps.append(partial(step, *args))

    def now(self) -> None:
        """Take all back that has not been taken back yet."""
        self.open = False
        while self._steps:
            self._steps[-1]()  # stays on the list until it is done
            self._steps.pop()
        self._frame = None

    @property
    def running(self) -> bool:
        """Whether the function that it belongs to is still being executed."""
        at = _frame_of(self.thread)
        while at is not None and at is not self._frame:
            at = at.f_back
        return at is not None and self.open

    def enter(self, context: Any) -> Any:
        """Enter what `contextlib.contextmanager` made, until the end; it is not told of an exception."""
        self.later(context.gen.close)  # does nothing to a generator that has not begun, or has ended
        return context.__enter__()

    def hook(self, module: nn.Module, hook: Callable[..., Any], pre: bool = False, **how: Any) -> None:
        """A forward hook on a module, or one before it (`pre`), which acts in this thread and until the end.

        how: as of torch's `register_forward_hook`.
        """

        def here(module: nn.Module, *given: Any) -> Any:
            return hook(module, *given) if self.open and threading.get_ident() == self.thread else None

        self.later(_unhook, module, here)
        (module.register_forward_pre_hook if pre else module.register_forward_hook)(here, **how)
        if not pre:
            _before_recorders(module)


def _frame_of(thread: int) -> FrameType | None:
    """Where a thread is; None: it has ended."""
    if thread == threading.get_ident():
        return sys._getframe()
    # A collection of garbage in the middle of this waits for ever for a lock that it holds (CPython 3.11, gh-106883).
    collecting = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        if collecting:
            gc.enable()


def _before_recorders(module: nn.Module) -> None:
    """Let hooks that transformers has left on a module to record its outputs come last, so that what it records, and
    models read on from (LLaVA takes the output of a block in the middle of its tower), is what hooks made of it."""
    held = cast("OrderedDict[int, Any]", module._forward_hooks)
    for number in [number for number, hook in held.items() if getattr(hook, "__module__", None) == RECORDING]:
        held.move_to_end(number)


def _unhook(module: nn.Module, hook: Callable[..., Any]) -> None:
    for held in (getattr(module, name) for name in HOOKS):
        for number in [number for number, other in held.items() if other is hook]:
            for marks in MARKS:
                getattr(module, marks).pop(number, None)
            held.pop(number, None)


@contextmanager
def undoing(call: Undo | None = None) -> Iterator[Undo]:
    """An `Undo` for the block, or for the rest of `call` where the end of the block is missed."""
    undo = Undo()
    if call is not None:
        call.later(undo.now)
    try:
        try:
            yield undo
        finally:
            undo.now()
    finally:
        undo.now()


def close_what_died() -> None:
    """End the blocks of ours that an interrupt kept from being left, before the first instruction of their `__exit__`.

    Nothing ends them as long as somebody holds the traceback, and Python's prompt and notebooks hold that of the last
    exception: there they are found. Elsewhere a block that died looks as one that somebody keeps open.
    """
    trace = getattr(sys, "last_traceback", None)
    if threading.current_thread() is not threading.main_thread():  # whose prompt it is, and who holds what they hold
        return
    while trace is not None:
        if trace.tb_frame.f_code is _LEAVING:
            block = getattr(trace.tb_frame.f_locals.get("self"), "gen", None)
            if inspect.isgenerator(block) and block.gi_suspended and block.gi_code.co_filename.startswith(_OURS):
                block.close()
        trace = trace.tb_next


_LEAVING = _GeneratorContextManager.__exit__.__code__
_OURS = f"{Path(__file__).parent}{os.sep}"


@contextmanager
def without_gradients() -> Iterator[None]:
    """`torch.no_grad()`, whose end is not missed."""
    with undoing() as undo:
        undo.later(torch.set_grad_enabled, torch.is_grad_enabled())
        torch.set_grad_enabled(False)
        yield


@contextmanager
def autocasting(device: str, enabled: bool) -> Iterator[None]:
    """Autocast on or off on a kind of device, in the dtype that it has there."""
    with undoing() as undo:
        undo.later(torch.set_autocast_enabled, device, torch.is_autocast_enabled(device))
        torch.set_autocast_enabled(device, enabled)
        yield


class Gate:
    """A lock that one thread holds at a time, as often as it likes; no exception leaves it locked."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._own = threading.local()

    def hold(self, undo: Undo) -> None:
        """Wait until no other thread holds it, and hold it until the end of `undo`."""
        reason = object()
        undo.later(self._give_back, reason)
        self._reasons.append(reason)
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock.acquire()

    @contextmanager
    def held(self) -> Iterator[None]:
        with undoing() as undo:
            self.hold(undo)
            yield

    @property
    def _reasons(self) -> list[object]:
        """Why this thread holds it."""
        reasons: list[object] = self._own.__dict__.setdefault("reasons", [])
        return reasons

    def _give_back(self, reason: object) -> None:
        reasons = self._reasons
        if reason in reasons:
            reasons.remove(reason)
        while not reasons and self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock.release()
