"""How the quality of what a model puts out is measured. One file a task: every `Task` in a module of this folder is
found by its `name`.

    result = interp.evaluate(lens, "pope:strategy=adversarial", interp.VAR())
    interp.tasks.summary(result)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.discovery import fetching, homes
from interp.tasks.base import Asked, Item, Measured, Task
from interp.tasks.catalogue import available, made

if TYPE_CHECKING:
    from interp.tasks.summarising import findings, summary

__all__ = ["Asked", "Item", "Measured", "Task", "available", "findings", "made", "summary"]

_WHERE = {"summary": "interp.tasks.summarising", "findings": "interp.tasks.summarising"}


def __getattr__(name: str) -> Any:
    return fetching(__name__, _WHERE | (homes(__name__) if name[:1].isupper() else {}))(name)
