"""Many inputs of one family, one after the other: each ends as it should or in a sentence of ours, and soon.

An input is made from a generator of its own, seeded by the family's name and the input's number,
so that what a failure
names can be made again by itself: `again(family, number)` in `tests/fuzzing/drawing.py` is its generator.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from interp.errors import InterpError
from tests.fuzzing.drawing import Draw, again

SECONDS = 20.0
"""No input takes longer: the largest is some text through a tiny model."""
SHOWN = 12
"""So many different failures are told in full."""
TIMES = 10
"""How many times as many inputs the slow form has."""

Attempt = Callable[[Draw], Any]


class StuckError(BaseException):
    """An input took too long; no `except Exception` of what is tried keeps it."""


def inputs(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test that is handed `count`, how many inputs it tries: this many, and many more in its slow form."""

    def of(test: Callable[..., None]) -> Callable[..., None]:
        test.inputs = count  # type: ignore[attr-defined]
        slow = pytest.param(count * TIMES, marks=[pytest.mark.slow, pytest.mark.timeout(900)])
        return pytest.mark.parametrize("count", [count, slow])(test)

    return of


def fuzz(family: str, count: int, attempt: Attempt, folder: Path | None = None, seconds: float = SECONDS) -> None:
    """Try inputs 0 to `count` of a family, and fail with all that ended otherwise than it may.

    An attempt names what it tries (`draw.trying(...)`), then does it. It may return, raise an `InterpError` whose
    message is one line, or an AssertionError, which fails the test. folder: where it may write; a refused input
    leaves there what it found, and none leaves temporary files. seconds: no input takes longer.
    """
    failures: dict[str, list[str]] = {}
    tried = 0
    with _watched(seconds) as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            draw = again(family, number)
            before = _listing(folder)
            watch(True)
            try:
                attempt(draw)
                found = ""
            except InterpError as refusal:
                found = _unlike_a_sentence(refusal)
                if not found and (changed := _listing(folder) ^ before):
                    found = f"a refused input changed {sorted(name for name, *_ in changed)}"
            except (Exception, StuckError) as error:
                found = _told(error)
            finally:
                watch(False)
            tried += 1
            if not found and (parts := [name for name, *_ in _listing(folder) if name.startswith(".interp-")]):
                found = f"left {parts}"
            if found:
                failures.setdefault(found, []).append(f"input {number}: {draw.tried()}")
    assert tried == count
    told = [f"{len(cases)} times, first {cases[0]}\n{found}" for found, cases in failures.items()]
    assert not failures, f"{family}: {len(failures)} kinds of failure\n\n" + "\n\n".join(told[:SHOWN])


def _unlike_a_sentence(refusal: InterpError) -> str:
    said = str(refusal)
    if not said.strip() or "Traceback" in said:
        return f"{type(refusal).__name__} says {said!r}"
    return ""


def _told(error: BaseException) -> str:
    """An exception with the last places that it passed: equal for equal faults."""
    places = [
        f"  {Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "/fuzzing/" not in frame.filename
    ]
    said = str(error).splitlines()[0][:200] if str(error) else ""
    return "\n".join([f"{type(error).__name__}: {said}" if not places else type(error).__name__, *places[-6:]]) + (
        f"\n  ({said})" if isinstance(error, AssertionError) else ""
    )


def _listing(folder: Path | None) -> set[tuple[str, int, int, int]]:
    """What lies in a folder: names with sizes, times of the last change and inodes."""
    if folder is None:
        return set()
    found = set()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            about = os.lstat(os.path.join(place, name))
            of_file = (about.st_size, about.st_mtime_ns, about.st_ino) if name in files else (0, 0, 0)
            found.add((os.path.relpath(os.path.join(place, name), folder), *of_file))
    return found


@contextmanager
def _watched(seconds: float) -> Iterator[Callable[[bool], None]]:
    """Raise `StuckError` in the main thread where an input takes longer than so many seconds, whatever it waits for.

    A signal does it, sent by a thread: it ends system calls too. Of the timers pytest-timeout has the only one.
    """
    began: list[float] = []
    over = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def stuck(number: int, frame: FrameType | None) -> None:
        raise StuckError(f"took longer than {seconds:.0f} s")

    def look() -> None:
        while not over.wait(0.5):
            if began and time.monotonic() - began[0] > seconds:
                began.clear()
                signal.pthread_kill(main, signal.SIGUSR1)

    def watch(on: bool) -> None:
        began[:] = [time.monotonic()] if on else []

    before = signal.signal(signal.SIGUSR1, stuck)
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield watch
    finally:
        over.set()
        looking.join()
        signal.signal(signal.SIGUSR1, before)
