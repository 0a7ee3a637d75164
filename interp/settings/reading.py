"""What a name and its settings say: `text_sinks:epsilon=[0.3,0.8],position=1`.

One reader for everything that is found by name and is a frozen dataclass: interventions, probes, questions. Values are
read by the types of the fields, so that a misspelt or misplaced one is refused here and not by the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from interp.discovery import unknown
from interp.errors import InterpError
from interp.settings.checking import NONE, check_names, checked, fields_of, required

T = TypeVar("T")
_WORDS = {NONE: None, "true": True, "false": False}
_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")


def read(text: str, kind: str, known: Mapping[str, type[T]], example: str) -> T:
    """What `name` or `name:key=value,key=value` describes; lists stand in brackets.

    Args:
        kind: what it is, for errors, such as "probe".
        known: all there are, by name.
        example: how one is written, for errors.

    Raises UnknownNameError for a name or a setting that does not exist, with the nearest one, and InterpError for a
    value that is not of its field's type, a setting given twice, and text that is not written so.
    """
    name, colon, rest = (piece.strip() for piece in text.partition(":"))
    settings: dict[str, str] = {}
    for pair in _OUTSIDE_BRACKETS.split(rest) if colon else ():
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not (key and equals and value):
            raise InterpError(f"{text!r} is no {kind}: write name:key=value,key=value, as in {example}.")
        if key in settings:
            raise InterpError(f"{text!r} sets {key} twice.")
        settings[key] = value
    return build(name, settings, kind, known, _meanings)


def build(
    name: str,
    settings: Mapping[str, Any],
    kind: str,
    known: Mapping[str, type[T]],
    meanings: Callable[[Any], Iterable[Any]],
) -> T:
    """What is called `name`, with these settings and its defaults for all others.

    meanings: what a value as it was given may mean, of which the first that fits its field is taken. Raises as `read`.
    """
    if name not in known:
        raise unknown(kind, name, known)
    cls = known[name]
    types = check_names(cls, settings)
    values = {key: checked(name, key, value, types[key], *meanings(value)) for key, value in settings.items()}
    if missing := [f.name for f in fields_of(cls) if f.name not in values and required(f)]:
        raise InterpError(f"{name} needs the setting {', '.join(missing)}, as in {name}:{missing[0]}=...")
    return cls(**values)


def split(texts: Iterable[str], kind: str) -> list[str]:
    """Descriptions out of lists of them, as `text_sinks:epsilon=0.3,position=1,attention_rank` is one of two.

    The comma stands between settings too, and what follows it says which it is: `key=value` without a name goes on with
    the settings before it. Raises InterpError for settings that follow nothing, or a name without a colon.
    """
    found: list[str] = []
    for text in texts:
        before = ""  # settings do not reach from one text into the next
        for piece in filter(None, map(str.strip, _OUTSIDE_BRACKETS.split(text))):
            if "=" not in piece or ":" in piece.partition("=")[0]:
                before = piece
                found.append(piece)
            elif ":" in before:
                found[-1] += f",{piece}"
            else:
                raise InterpError(f"{piece!r} is a setting of no {kind}: write it as {before or 'name'}:{piece}.")
    return found


def several(wanted: Any) -> list[Any]:
    """The members of a collection, or what is none as the only member."""
    try:
        return [wanted] if isinstance(wanted, str) else list(wanted)
    except TypeError:
        return [wanted]


def made(kind: str, wanted: str | T, base: type[T], known: Mapping[str, type[T]], example: str) -> T:
    """`wanted` itself, or what it describes. Raises as `read`."""
    if isinstance(wanted, base):
        return wanted
    if not isinstance(wanted, str):
        raise unknown(kind, wanted, known)
    return read(wanted, kind, known, example)


def _meanings(text: str) -> list[Any]:
    """What a word on the command line may mean, the narrowest meaning first and the word itself last."""
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        items = [_meanings(item.strip()) for item in inner.split(",")] if inner else []
        return [[item[0] for item in items], [item[-1] for item in items], text]
    meanings: list[Any] = [_WORDS[text.lower()]] if text.lower() in _WORDS else []
    for kind in (int, float):
        try:
            meanings.append(kind(text))
        except ValueError:
            continue
    return [*meanings, text]
