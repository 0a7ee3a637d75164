"""Which path of an operation runs: one rule for all operations, and `use` to override it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import TracebackType

PATHS = ("reference", "cpu")

_override: str | None = None


class use:
    """Override the path that every operation takes, as a plain call or for the length of a `with` block.

    >>> use("reference")                 # from now on, in every thread
    >>> with use("cpu"):                 # restored on leaving, also after an exception
    ...     attention_apply(q, k, v)

    path: "reference" (plain torch, keeps the N x S matrix), "cpu" (blocked torch) or "auto" (the rule of `choose`).
    Raises ValueError on any other name, and leaves the choice as it was.
    """

    def __init__(self, path: str) -> None:
        global _override
        if path not in (*PATHS, "auto"):
            near = get_close_matches(path, (*PATHS, "auto"), n=1)
            hint = f' (did you mean "{near[0]}"?)' if near else ""
            raise ValueError(f'use: no path is called "{path}"{hint}; there are "reference", "cpu" and "auto".')
        self._previous = _override
        _override = None if path == "auto" else path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _override
        _override = self._previous


def choose(paths: Mapping[str, Callable]) -> Callable:
    """The function to run: the overridden path, else the blocked one."""
    return paths[_override or "cpu"]
