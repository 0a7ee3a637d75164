"""What the writers of pages share: a page as sections, and a docstring as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator

BLOCK = re.compile(r"^(Args|Raises|Returns|Yields|Attributes|Examples):$")
ITEM = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)$")


def sections(page: str) -> dict[str, str]:
    """The parts of a page by their second-level headings; what stands before the first one under ""."""
    parts = re.split(r"^(## .+)$", page, flags=re.MULTILINE)
    return {"": parts[0].strip()} | {head: body.strip() for head, body in zip(parts[1::2], parts[2::2], strict=True)}


def blocks(docstring: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of the parts of a docstring, in order: prose, whose kind is "", and blocks such as "Args"."""
    kind, lines = "", []
    for line in [*inspect.cleandoc(docstring).splitlines(), "."]:
        begins = BLOCK.match(line)
        if begins or (kind and line and not line.startswith(" ")):
            if text := textwrap.dedent("\n".join(lines)).strip():
                yield kind, text
            kind, lines = (begins[1], []) if begins else ("", [line])
        else:
            lines.append(line)
    if text := "\n".join(lines).removesuffix(".").strip():
        yield "", text


def items(block: str) -> dict[str, str]:
    """What a block such as "Args" says of each name, in one line each."""
    found: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        if begins := (not line.startswith(" ") and ITEM.match(line)):
            name, found[begins[1]] = begins[1], begins[2]
        elif name:
            found[name] += f" {line.strip()}"
    return {key: text.strip() for names, text in found.items() for key in names.split(", ")}


def settings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and of those that it derives from say of its settings."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for kind, text in blocks(vars(base).get("__doc__") or ""):
            found |= items(text) if kind == "Args" else {}
    return found


def markdown(docstring: str, leave_out: tuple[str, ...] = ()) -> str:
    """A docstring as Markdown: lists for its blocks, code for its examples; blocks in `leave_out` are not there."""
    shown = []
    for kind, text in blocks(docstring):
        if kind in leave_out:
            continue
        if kind == "Examples":
            shown.append(f"```python\n{text}\n```")
        elif listed := items(text) if kind else {}:
            shown.append(f"{kind}:\n\n" + "\n".join(f"- `{name}`: {what}" for name, what in listed.items()))
        else:
            shown.append(f"{kind}: {text}" if kind else text)
    return "\n\n".join(shown)


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
