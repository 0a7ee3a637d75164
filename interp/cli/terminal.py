"""What every command of the command line shares: what was typed, a progress bar, safe text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DEBUG = "--debug"


def command_line() -> str:
    """The command as it was typed, without `--debug`."""
    return "interp " + shlex.join(a for a in sys.argv[1:] if a != DEBUG)


def printable(sentence: str) -> str:
    """Token text may hold control characters that would drive the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)


@contextmanager
def bar(what: str, total: int) -> Iterator[Any]:
    """A progress bar on standard error, shown only on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)
