"""One file per observation; every `Probe` subclass in a module of this folder is found by its `name`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from interp.discovery import classes_in, made
from interp.errors import InterpError
from interp.probes.base import Context, Fold, Probe

__all__ = ["Context", "Fold", "Probe", "available", "resolve"]


@cache
def available() -> dict[str, type[Probe]]:
    """All probes by name, in alphabetical order."""
    return classes_in(__name__, __path__, Probe)  # type: ignore[type-abstract]


def resolve(probes: Iterable[str | Probe] | str | Probe | None) -> list[Probe]:
    """Probe objects from names (with default parameters) and probes; None means all.

    Raises UnknownNameError for a name that is none, InterpError for something else or the same probe twice.
    """
    if probes is None:
        return [cls() for cls in available().values()]
    wanted = [probes] if isinstance(probes, (str, Probe)) else list(probes)
    found = [made("probe", p, Probe, available()) for p in wanted]  # type: ignore[type-abstract]
    if not found:
        raise InterpError(f"no probe was asked for; there are {', '.join(available())}.")
    names = [p.name for p in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InterpError(f"{', '.join(twice)} is asked for twice; results go by name, so run one setting at a time.")
    return found
