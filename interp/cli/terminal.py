"""What every command of the command line shares: streams that show anything safely, what was typed, a progress bar.

Names and texts come from elsewhere: a model's config, a tokenizer, a file's name. What they hold must neither drive the
terminal (escape sequences, right-to-left overrides) nor end a command halfway because the terminal's encoding lacks a
character. So both streams are replaced once, where the command line begins, and all that goes out goes through them:
findings, errors, warnings, log lines, tracebacks.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from interp.errors import StorageError
from interp.figures._text import visible
from interp.files.private import expanded

if TYPE_CHECKING:
    from rich.progress import Progress

DEBUG = "--debug"


class ReaderGoneError(Exception):
    """Who read the output has closed it, as `head` does: there is nobody to write to, and nothing is wrong."""


def command_line() -> str:
    """The command as it was typed, without `--debug`."""
    return "interp " + shlex.join(a for a in sys.argv[1:] if a != DEBUG)


def printable(sentence: str) -> str:
    """One line whatever is in it: line ends and tabs become visible too."""
    return visible(sentence)


def at_home(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """An option's path with the user's home in the place of `~`, which a shell leaves in `--out=~/results`."""
    return None if path is None else expanded(path, option.opts[0])


class PlainStream:
    """A text stream that writes control characters, and those that its encoding lacks, as visible escapes.

    Line ends and tabs stay. `forgiving`: what cannot be written is dropped, as there is no other place to say so.
    """

    def __init__(self, stream: TextIO, forgiving: bool) -> None:
        self.stream, self._forgiving = stream, forgiving
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # where bytes would go past this, as click's do where the encoding is ASCII
            raise AttributeError("this stream takes text alone")
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not (text.isascii() and text.isprintable()):
            lines = ("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))
            text = "\n".join(lines).encode(self._encoding, "backslashreplace").decode(self._encoding)
        with self._refusals():
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._refusals():
            self.stream.flush()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed
            _give_up(self.stream)
            if self._forgiving:
                return
            if isinstance(error, BrokenPipeError):
                raise ReaderGoneError from None
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"cannot write to standard output: {reason}.") from None


def _give_up(stream: TextIO) -> None:
    """What is still in a stream's buffer goes nowhere, or Python would complain about it when it ends."""
    with suppress(OSError, ValueError):
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Inside, standard output and standard error are `PlainStream`s, open in any case; all is flushed on leaving."""
    _open_the_closed()
    before = sys.stdout, sys.stderr
    out = PlainStream(sys.stdout or _nowhere(), forgiving=False)
    err = PlainStream(sys.stderr or _nowhere(), forgiving=True)
    sys.stdout, sys.stderr = out, err  # all that a text stream has, without its class
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        err.flush()


def _open_the_closed() -> None:
    """Let numbers 0 to 2 lead somewhere: else the next file that is opened takes one, and is written to as output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # for as long as the process runs


def _nowhere() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def progress_bars() -> Progress:
    """rich's progress bars on standard error, shown only on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    terminal = getattr(sys.stderr, "stream", sys.stderr)  # bars move the cursor, and show words of ours alone
    # were output redirected to the bars' console, it would not go through the streams above
    return Progress(
        console=Console(file=terminal), transient=True, disable=not terminal.isatty(),
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip


@contextmanager
def bar(what: str, total: int) -> Iterator[Any]:
    """A progress bar, which takes how much is done, and of how much."""
    with progress_bars() as progress:
        task = progress.add_task(what, total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)
