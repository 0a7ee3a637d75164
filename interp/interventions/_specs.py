"""Interventions as text: `think:ratio=0.5,window=16` on a command line, and TOML files that hold every setting.

A file is a list of tables, in the order in which the interventions were composed:

    [[intervention]]
    name = "think"
    ratio = 0.5

A setting of None is written "none", as on the command line: TOML has no word for it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.files import reading
from interp.files.writing import write
from interp.interventions import catalogue
from interp.interventions.base import Intervention, parts
from interp.settings.checking import NONE, checked, settings_of
from interp.settings.reading import build, read

TABLE = "intervention"
EXAMPLE = "think:ratio=0.5"
MOST_BYTES = 1_000_000  # of a file of settings


def parse(text: str) -> Intervention:
    """The intervention that `name:key=value,key=value` describes, or that a file `*.toml` holds.

    Lists stand in brackets (`layers=[0,1]`). Raises InterpError for a name, a setting or a value that does not exist.
    """
    if text.strip().endswith(".toml"):
        return load(text.strip())
    return read(text, "intervention", catalogue.available(), EXAMPLE)


def parse_all(texts: Iterable[str]) -> Intervention | None:
    """Several descriptions as one composition, or None where there is none."""
    found = [parse(text) for text in texts]
    return reduce(or_, found) if found else None


def to_toml(intervention: Intervention) -> str:
    """Every setting of an intervention and of all that it is composed of, defaults too.

    Raises InterpError for an intervention that could not be found again by its name, or a value that is not of its
    field's type.
    """
    import tomlkit

    tables = tomlkit.aot()
    for part in parts(intervention):
        cls = type(part)
        if catalogue.available().get(getattr(cls, "name", "")) is not cls:
            raise InterpError(
                f"{cls.__name__} cannot be stored: only what interp.interventions.available() lists is found again."
            )
        table = tomlkit.table()
        table.add("name", cls.name)
        for key, kind in settings_of(cls).items():
            value = checked(cls.name, key, getattr(part, key), kind)
            table.add(key, NONE if value is None else value)
        tables.append(table)
    document = tomlkit.document()
    document.add(TABLE, tables)
    return tomlkit.dumps(document)


def from_toml(text: str) -> Intervention:
    """The intervention, or the composition of several, that `to_toml` wrote. Settings left out have their defaults."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only its own: Python reads no number of over 4,300 digits
        raise InterpError(f"this is not TOML: {' '.join(str(error).split()).rstrip('.')}.") from None
    tables = content.pop(TABLE, None)
    if content or not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        found = f", found {', '.join(content)}" if content else ""
        raise InterpError(f"an intervention's TOML holds tables [[{TABLE}]] with a name and settings{found}.")
    if any(not isinstance(table.get("name"), str) for table in tables):
        raise InterpError(f'every [[{TABLE}]] needs a name, as in name = "think".')
    known = catalogue.available()
    settings = [{key: value for key, value in table.items() if key != "name"} for table in tables]
    built = [build(t["name"], own, "intervention", known, _as_stored) for t, own in zip(tables, settings, strict=True)]
    return reduce(or_, built)


def save(intervention: Intervention, path: str | Path) -> Path:
    """Write an intervention's settings to `path` as TOML; the file appears complete or not at all."""
    return write(path, to_toml(intervention))


def load(path: str | Path) -> Intervention:
    """The intervention that `save` wrote to `path`."""
    text = reading.read_text(path, "intervention file", most=MOST_BYTES)
    try:
        return from_toml(text)
    except InterpError as error:
        raise type(error)(f"{path}: {error}") from None


def _as_stored(value: Any) -> tuple[Any, ...]:
    """What a value of a file may mean: "none" stands for None too."""
    return (None, value) if value == NONE else (value,)
