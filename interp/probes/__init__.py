"""One file per observation; every `Probe` subclass in a module of this folder is found by its `name`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache

from interp.errors import InterpError, UnknownNameError
from interp.probes.base import Context, Fold, Probe

__all__ = ["Context", "Fold", "Probe", "available", "resolve"]


@cache
def available() -> dict[str, type[Probe]]:
    """All probes by name, in alphabetical order."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    classes = [c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if c.__module__ == m.__name__]
    return {c.name: c for c in sorted(_concrete(classes), key=lambda c: c.name)}


def _concrete(classes: Iterable[type]) -> list[type[Probe]]:
    return [c for c in classes if issubclass(c, Probe) and not inspect.isabstract(c)]


def resolve(probes: Iterable[str | Probe] | str | Probe | None) -> list[Probe]:
    """Probe objects from names (with default parameters) and probes; None means all.

    Raises UnknownNameError for a name that is none, InterpError for something else or the same probe twice.
    """
    if probes is None:
        return [cls() for cls in available().values()]
    wanted = [probes] if isinstance(probes, (str, Probe)) else list(probes)
    made = [_one(p) for p in wanted]
    if not made:
        raise InterpError(f"no probe was asked for; there are {', '.join(available())}.")
    names = [p.name for p in made]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InterpError(f"{', '.join(twice)} is asked for twice; results go by name, so run one setting at a time.")
    return made


def _one(probe: str | Probe) -> Probe:
    if isinstance(probe, Probe):
        return probe
    if probe not in available():
        (near,) = difflib.get_close_matches(str(probe), available(), n=1, cutoff=0.0)
        raise UnknownNameError(
            f"there is no probe {probe!r}; did you mean {near!r}? There are {', '.join(available())}."
        )
    return available()[probe]()
