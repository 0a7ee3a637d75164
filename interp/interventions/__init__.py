"""One file a method: every `Intervention` in a module of this folder is found by its `name`, and exported by `interp`.

`save` and `load` keep one with all its settings as TOML; `parse` reads `think:ratio=0.5`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from interp.errors import UnknownNameError
from interp.interventions._specs import load, parse, parse_all, save
from interp.interventions.base import CachePolicy, Composition, Intervention, Plan, Prompt, parts

__all__ = [
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
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_") and m.name != "base"]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    classes = [c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if c.__module__ == m.__name__]
    found = [c for c in classes if issubclass(c, Intervention) and "name" in vars(c)]
    return {c.name: c for c in sorted(found, key=lambda c: c.name)}


def named(name: str, **settings: Any) -> Intervention:
    """The intervention called `name`, with settings as keyword arguments.

    Raises UnknownNameError for a name or a setting that does not exist, with the nearest one.
    """
    if name not in available():
        (near,) = difflib.get_close_matches(name, available(), n=1, cutoff=0.0)
        raise UnknownNameError(
            f"there is no intervention {name!r}; did you mean {near!r}? There are {', '.join(available())}."
        )
    cls = available()[name]
    known = [field.name for field in cls.__dataclass_fields__.values()]  # type: ignore[attr-defined]
    for setting in settings:
        if setting not in known:
            (near,) = difflib.get_close_matches(setting, known, n=1, cutoff=0.0)
            raise UnknownNameError(
                f"{name} has no setting {setting!r}; did you mean {near!r}? It has {', '.join(known)}."
            )
    return cls(**settings)


def __getattr__(name: str) -> Any:
    # `from interp.interventions import _channels` asks here too, in the middle of an import: look at class names only
    for cls in available().values() if name[:1].isupper() else ():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module 'interp.interventions' has no attribute {name!r}")
