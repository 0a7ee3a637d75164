"""What inputs are made of: valid ones, changed in one place or a few, and values that are none."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import numpy as np
import torch

from interp.settings.checking import settings_of

WORDS = (
    "", " ", "a", "none", "true", "nan", "inf", "-inf", "0", "-1", "1e400", "0x10", "½", "é", "漢字", "\u202eevil",
    "\x00", "\x1b[31m", "\udcff", "🧑‍🔬", "\n", "\r\n", "\t", "%s", "{0}", "{{ 7*7 }}", "<script>", "$x$", "\\", '"',
    "'", "`", "..", "/", "~", "~nobody/x", "/dev/null", "C:\\x", "[", "]", "[[", "[0,1]", "=", ",", ":", "a=b",
    "a:b=c",
    "a" * 300, "٣", "_",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, 1, 2, 3, 5, 7, 16, 100, -1, -2, -7, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.0, -0.0, 0.5, 1.0, 1.5, 2.5, -0.5,
    1e-300, 1e300, math.nan, math.inf, -math.inf, True, False,
)  # fmt: skip


class Draw(random.Random):
    """A generator that remembers what was tried with it."""

    _tried: tuple[Any, ...] = ()

    def trying(self, *what: Any) -> None:
        """Say what is tried now, for a failure to show."""
        self._tried = what

    def tried(self) -> str:
        try:
            return " ".join(one if isinstance(one, str) else repr(one)[:600] for one in self._tried)
        except Exception as error:  # what is tried may have no words
            return f"something whose repr raises {error!r}"

    def often(self, share: float) -> bool:
        return self.random() < share

    def number(self) -> Any:
        return self.choice(NUMBERS)

    def small(self) -> int:
        """A whole number that nothing is large by."""
        return self.choice((0, 1, 2, 3, 4, 5, 7, 8, 12, -1, -2, -5))

    def word(self) -> str:
        return self.choice(WORDS)

    def text(self, valid: str) -> str:
        """`valid`, changed in a place or several, or something else."""
        return self.choice(WORDS) if self.often(0.05) else changed_text(self, valid)

    def value(self, depth: int = 2) -> Any:
        """Anything that somebody may pass."""
        kind = self.randrange(12)
        if kind < 4:
            return self.number()
        if kind < 6:
            return self.word()
        if kind == 6 and depth:
            return [self.value(depth - 1) for _ in range(self.randrange(4))]
        if kind == 7 and depth:
            return tuple(self.value(depth - 1) for _ in range(self.randrange(3)))
        if kind == 8 and depth:
            return {self.word(): self.value(depth - 1) for _ in range(self.randrange(3))}
        if kind == 9:
            return self.choice((None, b"", b"\xff", set(), object(), int, len, Ellipsis, 1j, range(3), slice(None)))
        if kind == 10:
            return self.choice((np.float32(0.5), np.int64(3), np.bool_(True), np.array([1, 2]), np.array("a"), np.nan))
        return self.choice(
            (torch.tensor(1), torch.tensor([0.5]), torch.zeros(0), torch.tensor(math.nan), torch.float32, "cpu", None)
        )

    def near(self, kind: Any, default: Any) -> Any:
        """A value for a field of a type: one that fits it more often than not."""
        if self.often(0.35):
            return self.value()
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is tuple:
            return tuple(self.near(arguments[0], None) for _ in range(self.randrange(4)))
        if kind is int:
            return self.choice((self.small(), self.number()))
        if kind is float:
            return self.choice((0.1, 0.3, 0.5, 0.9, 1.0, 2.0, self.number()))
        if kind is bool:
            return self.often(0.5)
        if arguments:
            chosen = self.choice(arguments)
            return self.near(chosen, default) if isinstance(chosen, type) or get_origin(chosen) else chosen
        return default if self.often(0.5) else self.word()

    def settings(self, cls: type) -> dict[str, Any]:
        """Some settings of a dataclass, now and then one that it does not have."""
        types = settings_of(cls)
        some = self.sample(sorted(types), min(len(types), self.choice((0, 1, 1, 1, 2, 3))))
        found = {name: self.near(types[name], getattr(cls, name, None)) for name in some}
        if self.often(0.05):
            found[self.choice((*types, "other"))[:-1]] = self.value()
        return found


def again(family: str, number: int) -> Draw:
    """The generator of one input."""
    return Draw(f"{family}:{number}")


def changed_text(draw: Draw, text: str) -> str:
    """A text with characters left out, doubled, exchanged or put in."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(text) + 1)
        to = min(len(text), at + draw.choice((1, 1, 2, 5, 20)))
        kind = draw.randrange(7)
        if kind == 0:
            text = text[:at] + text[to:]
        elif kind == 1:
            text = text[:to] + text[at:]
        elif kind == 2:
            text = text[:at] + draw.word() + text[at:]
        elif kind == 3:
            text = text[:at] + draw.word() + text[to:]
        elif kind == 4:
            text = text[:at]
        elif kind == 5:
            text = text[:at] + text[at:to].swapcase() + text[to:]
        else:
            text = text[:at] + str(draw.number()) + text[to:]
    return text


def damaged(draw: Draw, content: bytes, other: bytes = b"") -> bytes:
    """Bytes of a file, changed: bits flipped, cut off, cut out, doubled, zeroed, or spliced with another file's."""
    made = bytearray(content)
    kind = draw.choice(("bit", "bit", "bytes", "cut", "hole", "double", "zeros", "splice", "swap"))
    place = draw.randrange(max(1, len(content)))
    length = draw.choice((1, 4, 8, 64, 600))
    if kind == "bit":
        for _ in range(draw.choice((1, 1, 1, 2, 8))):
            made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        for _ in range(draw.randrange(1, 9)):
            made[draw.randrange(len(made))] = draw.randrange(256)
    elif kind == "cut":
        del made[place:]
    elif kind == "hole":
        del made[place : place + length]
    elif kind == "double":
        made[place:place] = made[place : place + length]
    elif kind == "zeros":
        made[place : place + length] = bytes(len(made[place : place + length]))
    elif kind == "splice":
        made[place:] = (other or content)[draw.randrange(max(1, len(other or content))) :]
    else:
        there = draw.randrange(max(1, len(content)))
        one, two = made[place : place + length], made[there : there + length]
        short = min(len(one), len(two))
        made[place : place + short], made[there : there + short] = two[:short], one[:short]
    return bytes(made)


def changed(draw: Draw, value: Any, depth: int = 6) -> Any:
    """A nest of mappings, lists and plain values as JSON has it, changed in one place."""
    if isinstance(value, Mapping) and value and depth and draw.often(0.9):
        name = draw.choice(sorted(value, key=str))
        kind = draw.randrange(10)
        if kind == 0:
            return {key: held for key, held in value.items() if key != name}
        if kind == 1:
            return {**value, draw.word(): draw.choice(list(value.values()))}
        return {**value, name: changed(draw, value[name], depth - 1)}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and value and depth and draw.often(0.9):
        at, kind = draw.randrange(len(value)), draw.randrange(10)
        items = list(value)
        if kind == 0:
            del items[at]
        elif kind == 1:
            items.append(items[at])
        elif kind == 2:
            draw.shuffle(items)
        else:
            items[at] = changed(draw, items[at], depth - 1)
        return items
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or draw.often(0.3):
        return draw.choice((None, True, [], {}, "", 0, -1, 1e300, "a", [[]], {"a": 1}, [None], 2**70))
    if isinstance(value, str):
        return draw.text(value)
    return draw.choice((value + 1, -value, value * 2, 0, draw.number()))
