"""One file a method: every `Intervention` in a module of this folder is found by its `name`, and exported by `interp`.

`save` and `load` keep one with all its settings as TOML; `parse` reads `think:ratio=0.5`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from interp.discovery import classes_in, unknown
from interp.interventions._specs import check_names, load, parse, parse_all, save
from interp.interventions.base import CachePolicy, Composition, Intervention, Plan, Prompt, parts
from interp.interventions.edits import AttentionEdit

__all__ = [
    "AttentionEdit",
    "CachePolicy",
    "Composition",
    "Intervention",
    "Plan",
    "Prompt",
    "available",
    "load",
    "named",
    "parse",
    "parse_all",
    "parts",
    "save",
]


@cache
def available() -> dict[str, type[Intervention]]:
    """All interventions by name, in alphabetical order."""
    found = classes_in(__name__, __path__, Intervention)
    del found[Composition.name]
    return found


def named(name: str, **settings: Any) -> Intervention:
    """The intervention called `name`, with settings as keyword arguments.

    Raises UnknownNameError for a name or a setting that does not exist, with the nearest one.
    """
    if name not in available():
        raise unknown("intervention", name, available())
    cls = available()[name]
    check_names(cls, settings)
    return cls(**settings)


def __getattr__(name: str) -> Any:
    # `from interp.interventions import _channels` asks here too, in the middle of an import: look at class names only
    for cls in available().values() if name[:1].isupper() else ():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module 'interp.interventions' has no attribute {name!r}")
