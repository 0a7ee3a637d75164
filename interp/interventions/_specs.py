"""Interventions as text: `think:ratio=0.5,window=16` on a command line, and TOML files that hold every setting.

A file is a list of tables, in the order in which the interventions were composed:

    [[intervention]]
    name = "think"
    ratio = 0.5

Values are read by the types of the dataclass' fields, so that a misspelt or misplaced one is refused here and not by
the model. A setting of None is written "none", as on the command line: TOML has no word for it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from interp.errors import InterpError, UnknownNameError
from interp.interventions.base import Intervention, parts

TABLE = "intervention"
_NONE = "none"
_WORDS = {_NONE: None, "true": True, "false": False}
_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")
_STRICT_FIRST = (NoneType, bool, int, float)


class _MisfitError(Exception):
    """A value that is not of a field's type."""


def parse(text: str) -> Intervention:
    """The intervention that `name:key=value,key=value` describes, or that a file `*.toml` holds.

    Lists stand in brackets (`layers=[0,1]`). Raises InterpError for a name, a setting or a value that does not exist.
    """
    if text.strip().endswith(".toml"):
        return load(text.strip())
    name, colon, rest = (piece.strip() for piece in text.partition(":"))
    settings: dict[str, str] = {}
    for pair in _OUTSIDE_BRACKETS.split(rest) if colon else ():
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not (key and equals and value):
            raise InterpError(f"{text!r} is no intervention: write name:key=value,key=value, as in think:ratio=0.5.")
        if key in settings:
            raise InterpError(f"{text!r} sets {key} twice.")
        settings[key] = value
    return _build(name, settings, from_text=True)


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

    from interp.interventions import available

    tables = tomlkit.aot()
    for part in parts(intervention):
        cls = type(part)
        if available().get(getattr(cls, "name", "")) is not cls:
            raise InterpError(
                f"{cls.__name__} cannot be stored: only what interp.interventions.available() lists is found again."
            )
        table = tomlkit.table()
        table.add("name", cls.name)
        for key, kind in _settings(cls).items():
            value = _checked(cls.name, key, getattr(part, key), kind)
            table.add(key, _NONE if value is None else value)
        tables.append(table)
    document = tomlkit.document()
    document.add(TABLE, tables)
    return tomlkit.dumps(document)


def from_toml(text: str) -> Intervention:
    """The intervention, or the composition of several, that `to_toml` wrote. Settings left out have their defaults."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InterpError(f"this is not TOML: {error}.") from None
    tables = content.pop(TABLE, None)
    if content or not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        found = f", found {', '.join(content)}" if content else ""
        raise InterpError(f"an intervention's TOML holds tables [[{TABLE}]] with a name and settings{found}.")
    if any(not isinstance(table.get("name"), str) for table in tables):
        raise InterpError(f'every [[{TABLE}]] needs a name, as in name = "think".')
    built = [_build(t["name"], {k: v for k, v in t.items() if k != "name"}, from_text=False) for t in tables]
    return reduce(or_, built)


def save(intervention: Intervention, path: str | Path) -> Path:
    """Write an intervention's settings to `path` as TOML; the file appears complete or not at all."""
    from interp.storage import replacing

    text, path = to_toml(intervention), Path(path)
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def load(path: str | Path) -> Intervention:
    """The intervention that `save` wrote to `path`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InterpError(f"{path} is not UTF-8, so it is no TOML.") from None
    except OSError as error:
        raise InterpError(f"cannot read the intervention file {path}: {error.strerror or error}.") from None
    try:
        return from_toml(text)
    except InterpError as error:
        raise type(error)(f"{path}: {error}") from None


def _build(name: str, settings: Mapping[str, Any], *, from_text: bool) -> Intervention:
    from interp.interventions import available, named

    if name not in available():
        named(name)  # raises, and suggests the nearest name
    cls = available()[name]
    known = check_names(cls, settings)
    values = {
        key: _checked(name, key, value, known[key], *(_readings(value) if from_text else _none_or(value)))
        for key, value in settings.items()
    }
    if missing := [f.name for f in _fields(cls) if f.name not in values and _required(f)]:
        raise InterpError(f"{name} needs the setting {', '.join(missing)}, as in {name}:{missing[0]}=...")
    return named(name, **values)


def check_names(cls: Any, settings: Iterable[str]) -> dict[str, Any]:
    """The types of all settings. Raises UnknownNameError where one of `settings` is none of them."""
    known = _settings(cls)
    for key in settings:
        if key not in known:
            (near,) = difflib.get_close_matches(key, known, n=1, cutoff=0.0) or [""]
            raise UnknownNameError(
                f"{cls.name} has no setting {key!r}; did you mean {near!r}? It has {', '.join(known)}."
            )
    return known


def check_types(intervention: Any) -> None:
    """Raise InterpError where a setting is not of its field's type, whoever made the intervention."""
    cls = type(intervention)
    for key, kind in _settings(cls).items():
        _checked(cls.name, key, getattr(intervention, key), kind)


def _fields(cls: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _settings(cls: type) -> dict[str, Any]:
    """The type of every setting."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in _fields(cls)}


def _none_or(value: Any) -> tuple[Any, ...]:
    return (None, value) if value == _NONE else (value,)


def _readings(text: str) -> list[Any]:
    """What a word on the command line may mean, the narrowest meaning first and the word itself last."""
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        items = [_readings(item.strip()) for item in inner.split(",")] if inner else []
        return [[item[0] for item in items], [item[-1] for item in items], text]
    meanings: list[Any] = [_WORDS[text.lower()]] if text.lower() in _WORDS else []
    for read in (int, float):
        try:
            meanings.append(read(text))
        except ValueError:
            continue
    return [*meanings, text]


def _checked(name: str, key: str, value: Any, kind: Any, *readings: Any) -> Any:
    """The first of the readings (without any, the value itself) that is of a field's type."""
    for reading in readings or (value,):
        try:
            return _typed(reading, kind)
        except _MisfitError:
            continue
    raise InterpError(f"{name}: {key} should be {_described(kind)}, found {value!r}.")


def _typed(value: Any, kind: Any) -> Any:
    """`value` as a plain Python value of the type `kind`; raises `_MisfitError` where it is of another.

    Numbers are finite: no setting means anything at infinity, and one that is not a number passes every comparison.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for member in sorted(arguments, key=lambda t: _STRICT_FIRST.index(t) if t in _STRICT_FIRST else 9):
            try:
                return _typed(value, member)
            except _MisfitError:
                continue
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif origin is tuple and isinstance(value, (tuple, list, range)):
        inner = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments
        if len(inner) == len(value):
            return tuple(_typed(item, member) for item, member in zip(value, inner, strict=True))
    elif kind is NoneType and value is None:
        return None
    elif kind in (bool, str) and isinstance(value, kind):
        return value
    elif kind is int and not isinstance(value, bool) and isinstance(value, numbers.Integral):
        return int(value)
    elif kind is float and not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    raise _MisfitError


def _described(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(_described(member) for member in arguments)
    if origin is tuple:
        return f"a list of {_described(arguments[0]).removeprefix('a ')}s in brackets"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", NoneType: _NONE}
    return names.get(kind, str(kind))
