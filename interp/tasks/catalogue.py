"""Which tasks there are: a class in a module of this folder, found by the name it bears."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from interp.discovery import classes_in
from interp.settings import reading
from interp.tasks.base import Task

EXAMPLE = "pope:strategy=popular"


@cache
def available() -> dict[str, type[Task]]:
    """All tasks by name, in alphabetical order."""
    return classes_in("interp.tasks", [str(Path(__file__).parent)], Task)


def made(task: str | Task) -> Task:
    """A task from its name, with settings (`pope:strategy=popular`) or without, or the task itself.

    Raises UnknownNameError for a name or a setting that is none, InterpError for a value that does not fit.
    """
    return reading.made("task", task, Task, available(), EXAMPLE)
