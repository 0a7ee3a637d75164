"""Studies: experiments from papers on in-context learning, re-run with verdicts computed from the numbers.

One file a study; every `Study` in this folder is found by its name.

    from interp.icl import studies

    study = studies.make("single-layer", quick=True)
    result = study.run("runs/single-layer")
    for row in study.verdicts(result):
        print(row.claim, row.expected, row.found, row.verdict)
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from interp.discovery import classes_in, unknown
from interp.errors import InterpError
from interp.icl.studies.base import Choice, Picture, Progress, Study
from interp.icl.studies.parts import StudyParts
from interp.icl.studies.verdicts import Verdict, between, near

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Choice",
    "Picture",
    "Progress",
    "Study",
    "StudyParts",
    "Verdict",
    "available",
    "between",
    "make",
    "near",
    "of_result",
]


@cache
def available() -> dict[str, type[Study]]:
    """All studies by name, in alphabetical order."""
    return classes_in(__name__, __path__, Study)


def make(name: str, **settings: Any) -> Study:
    """The study called `name` with these settings, and its defaults for all others.

    A quick study trains `quick_seeds` unless `seeds` says otherwise. Raises UnknownNameError for a name that is none,
    with the nearest one, and InterpError for a setting that the study does not have, or of a value that it cannot have.
    """
    if name not in available():
        raise unknown("study", name, available())
    cls = available()[name]
    known = [field.name for field in dataclasses.fields(cls)]
    if wrong := [setting for setting in settings if setting not in known]:
        raise InterpError(f"the study {name} has no setting {wrong[0]!r}; it has {', '.join(known)}.")
    if settings.get("quick") is True and cls.quick_seeds is not None:
        settings = {"seeds": cls.quick_seeds, **settings}
    return cls(**settings)


def of_result(result: xr.Dataset) -> Study:
    """The study that made a result, with the settings it had. Raises InterpError for a dataset that is no study's, or
    does not say which settings its study had."""
    name, settings = result.attrs.get("study"), result.attrs.get("settings", {})
    if name is None:
        raise InterpError("this dataset is no result of a study: it does not say which study made it.")
    with suppress(ValueError, RecursionError):  # no JSON
        settings = json.loads(settings) if isinstance(settings, str) else settings
    if not isinstance(settings, dict):
        raise InterpError(f"this result does not say which settings its study had: {str(settings)[:60]!r}.")
    return make(str(name), **{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()})
