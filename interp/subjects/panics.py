"""Panics of libraries written in Rust (tokenizers, safetensors) as ordinary errors.

A panic reaches Python as an exception that is no `Exception`, so it passes whatever catches those; and before it does,
Rust has written it on file descriptor 2, behind Python's back.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from interp.undoing import undoing

HEAD = re.compile(rb"\n?thread '[^\n]*panicked at [^\n]*\n")
BACKTRACE = re.compile(rb"stack backtrace:\n(?: +(?:\d+:|at )[^\n]*\n)*")
NOTE = re.compile(rb"note: [^\n]*run with `RUST_BACKTRACE=[^\n]*\n")


class PanicError(RuntimeError):
    """A library written in Rust has given up; the message is its own."""


@contextmanager
def panics_caught(unseen: bool = True) -> Iterator[None]:
    """Inside, a panic is a `PanicError`.

    unseen: what Rust says of it on file descriptor 2 is not seen. What else is written there meanwhile is held back and
    comes when the block ends; of blocks in several threads, when the last one ends.
    """
    with undoing() as undo:
        if unseen:
            reason = object()
            undo.later(_ERRORS.give_back, reason)
            _ERRORS.hold(reason)
        try:
            yield
        except BaseException as error:
            if not is_panic(error):
                raise
            said = str(error)
            _ERRORS.panics.append(said)
            raise PanicError(" ".join(said.split()) or "no message") from None


def is_panic(error: BaseException) -> bool:
    """Told by its name: each library has a class of its own, and exports none."""
    return type(error).__name__ == "PanicException" and not isinstance(error, Exception)


class _Errors:
    """File descriptor 2, which leads to a file while somebody holds it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # an interrupt inside runs `give_back` in the same thread
        self._reasons: list[object] = []
        self._own: int | None = None
        self._file: IO[bytes] | None = None
        self.panics: list[str] = []

    def hold(self, reason: object) -> None:
        with self._lock, suppress(OSError):  # a process may have no such descriptor, or no more free ones
            self._reasons.append(reason)
            if self._own is None:
                self._file = _file()
                self._own = os.dup(2)
                _flush()
                os.dup2(self._file.fileno(), 2)

    def give_back(self, reason: object) -> None:
        with self._lock, suppress(OSError):
            if reason in self._reasons:
                self._reasons.remove(reason)
            if self._reasons or self._own is None or self._file is None:
                return
            _flush()
            os.dup2(self._own, 2)
            os.close(self._own)
            self._own = None
            self._file.seek(0)
            held, panics, self.panics = self._file.read(), self.panics, []
            self._file.close()
            if held:
                os.write(2, without_panics(held, panics))


def _file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _flush() -> None:
    with suppress(AttributeError, ValueError, OSError):  # there is none under pythonw, and it may be closed
        sys.stderr.flush()


def without_panics(written: bytes, panics: list[str]) -> bytes:
    """What was written to standard error, without what Rust says of panics with these messages."""
    for said in panics:
        message = re.escape(said.encode("utf-8", "replace"))
        written = re.sub(HEAD.pattern + message + rb"\n(?:" + BACKTRACE.pattern + rb")?", b"", written)
    return NOTE.sub(b"", written) if panics else written


_ERRORS = _Errors()
