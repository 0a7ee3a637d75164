"""Untrusted text on a page: shown letter by letter, never as markup."""

from __future__ import annotations

import re

from interp.figures._text import visible

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~$:&^=])")
# What Streamlit replaces after it has read the Markdown, where no backslash helps: icons, addresses, arrows, dashes
_REPLACED = re.compile(
    r"(?<=:)(?=material|streamlit)|(?<=www)(?=\.)|(?<=http)(?=s?:)|(?<=@)"
    r"|(?:(?<=\s[-<>~])|(?<=^[-<>~]))(?=[-=>])",
    re.IGNORECASE,
)
_JOINER = "\u2060"  # takes no room, and breaks what would be replaced


def plain(text: str) -> str:
    """`text` for a place that reads Markdown, so that all of it is shown as it is."""
    return _MARKUP.sub(r"\\\1", _REPLACED.sub(_JOINER, " ".join(visible(text).split())))
