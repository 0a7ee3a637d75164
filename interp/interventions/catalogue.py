"""Which interventions there are: a class in a module of `policies` or `edits`, found by the name it bears."""

from __future__ import annotations

from functools import cache
from typing import Any

from interp.discovery import classes_in, unknown
from interp.interventions import edits, policies
from interp.interventions.base import Intervention
from interp.settings.checking import check_names


@cache
def available() -> dict[str, type[Intervention]]:
    """All interventions by name, in alphabetical order."""
    found: dict[str, type[Intervention]] = {}
    for package in (edits, policies):
        found |= classes_in(package.__name__, package.__path__, Intervention)
    return dict(sorted(found.items()))


def named(name: str, **settings: Any) -> Intervention:
    """The intervention called `name`, with settings as keyword arguments.

    Raises UnknownNameError for a name or a setting that does not exist, with the nearest one.
    """
    if name not in available():
        raise unknown("intervention", name, available())
    cls = available()[name]
    check_names(cls, settings)
    return cls(**settings)
