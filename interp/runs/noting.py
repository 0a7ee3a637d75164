"""Warnings given on the way, for an account instead of standard error, each thread its own.

What shows a warning, and the filters before it, belong to the whole process. So they are changed once for all threads
that are noting, and come back when the last has ended; warnings of other threads are shown as ever.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from interp.undoing import Gate, undoing

_gate = Gate()
_noted: dict[int, list[list[warnings.WarningMessage]]] = {}
"""What is noted in each thread, by its number, the outermost list first."""
_changed: list[warnings.catch_warnings] = []
"""Our change of the process, while there is one."""


@contextmanager
def noting() -> Iterator[list[str]]:
    """Warnings for the user, each once, as lines in a list that is filled when the block has ended."""
    notes: list[str] = []
    caught: list[warnings.WarningMessage] = []
    thread = threading.get_ident()
    with undoing() as undo:
        undo.later(_leave, thread, caught)
        with _gate.held():
            _noted.setdefault(thread, []).append(caught)
            if not _changed:
                _change()
        yield notes
    notes += dict.fromkeys(" ".join(str(w.message).split()) for w in caught if w.category is UserWarning)


def _change() -> None:
    change = warnings.catch_warnings()
    _changed.append(change)
    change.__enter__()
    warnings.simplefilter("always")  # what one thread was told is news to another
    shown = warnings.showwarning

    def note(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if own := _noted.get(threading.get_ident()):
            own[-1].append(warnings.WarningMessage(message, category, *where, **more))
        else:
            shown(message, category, *where, **more)

    warnings.showwarning = note


def _leave(thread: int, caught: list[warnings.WarningMessage]) -> None:
    with _gate.held():
        own = _noted.get(thread, [])
        own[:] = [other for other in own if other is not caught]
        if not own:
            _noted.pop(thread, None)
        if _changed and not _noted:
            _changed[0].__exit__(None, None, None)
            _changed.clear()
