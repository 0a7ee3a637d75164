"""Untrusted text on a page: shown letter by letter, never as markup."""

from __future__ import annotations

import re

from interp.figures._text import visible

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~$:&^=])")


def plain(text: str) -> str:
    """`text` for a place that reads Markdown, so that all of it is shown as it is."""
    return _MARKUP.sub(r"\\\1", " ".join(visible(text).split()))
