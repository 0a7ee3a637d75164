"""Settings checked against the types of a dataclass' fields, whoever made it: code, a command line or a file."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable
from functools import wraps
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from interp.errors import InterpError, UnknownNameError

NONE = "none"
LARGEST = 2**63 - 1
"""Of whole numbers: tensors count with no more."""
LONGEST = 200
"""Characters of a value in an error."""
_STRICT_FIRST = (NoneType, bool, int, float)
_READ = (*_STRICT_FIRST, str, tuple)


class _MisfitError(Exception):
    """A value that is not of a field's type."""


def check_names(cls: Any, settings: Iterable[str]) -> dict[str, Any]:
    """The types of all settings. Raises UnknownNameError where one of `settings` is none of them."""
    known = settings_of(cls)
    for key in settings:
        if key not in known:
            (near,) = difflib.get_close_matches(key, known, n=1, cutoff=0.0) or [""]
            raise UnknownNameError(
                f"{cls.name} has no setting {key!r}; did you mean {near!r}? It has {', '.join(known)}."
            )
    return known


def check_types(instance: Any) -> None:
    """Raise InterpError where a setting is not of its field's type, whoever made the instance; those that are become
    plain values of it: numbers of numpy Python's, lists tuples."""
    cls = type(instance)
    name = cls.name if isinstance(getattr(cls, "name", None), str) else cls.__name__
    for key, kind in settings_of(cls).items():
        object.__setattr__(instance, key, checked(name, key, getattr(instance, key), kind))


class Checked:
    """A dataclass whose settings are of their fields' types before its own `__post_init__` looks at them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (own := vars(cls).get("__post_init__")) is not None:

            @wraps(own)
            def first_the_types(self: Checked) -> None:
                check_types(self)
                own(self)

            cls.__post_init__ = first_the_types  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_types(self)


def fields_of(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def settings_of(cls: type) -> dict[str, Any]:
    """The type of every setting."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields_of(cls)}


def checked(name: str, key: str, value: Any, kind: Any, *readings: Any) -> Any:
    """The first of the readings (without any, the value itself) that is of a field's type."""
    for reading in readings or (value,):
        try:
            return _typed(reading, kind)
        except _MisfitError:
            continue
    raise InterpError(f"{name}: {key} should be {_described(kind)}, found {shown(value)}.")


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
    elif (
        kind is int
        and not isinstance(value, bool)
        and isinstance(value, numbers.Integral)
        and abs(int(value)) <= LARGEST
    ):
        return int(value)
    elif kind is float and not isinstance(value, bool) and isinstance(value, numbers.Real) and _finite(value):
        return float(value)
    elif kind is Any or (isinstance(kind, type) and kind not in _READ and not isinstance(value, NoneType | str)):
        return value  # what stands for a tensor is read where it is used
    raise _MisfitError


def _finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more digits than a float has
        return False


def shown(value: Any) -> str:
    """A value as an error shows it, which need not be short."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of over 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:20]}... ({len(text):,} characters)"


def _described(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(_described(member) for member in arguments)
    if origin is tuple:
        one = _described(arguments[0])
        return (
            f"a list of {one.removeprefix('a ')}s in brackets"
            if one.startswith("a ")
            else f"a list in brackets, each {one}"
        )
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", NoneType: NONE}
    return names.get(kind, str(kind))
