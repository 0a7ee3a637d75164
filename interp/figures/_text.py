"""Token text for display: every character visible, none that a browser or plotly would act on.

Token text comes from whoever wrote the text, so it may hold markup (plotly interprets `<b>`, `<br>`, `<a>` in any
label), control characters and right-to-left overrides that would rearrange what stands beside them.
"""

from __future__ import annotations

import html
import unicodedata

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINER = "\u200d"  # joins the parts of compound emoji
_SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


def visible(text: str, most: int | None = None) -> str:
    r"""Shows control, format, unassigned and lone-surrogate characters as `\n`, `\x00`, `\u202e`; cuts at `most`.

    For the eye only: backslashes stay as they are, so the result cannot be turned back.
    """
    shown = "".join(_show(character) for character in text)
    return shown if most is None or len(shown) <= most else shown[: most - 1] + "…"


def _show(character: str) -> str:
    if unicodedata.category(character) not in _INVISIBLE or character == _JOINER:
        return character
    code = ord(character)
    written = rf"\x{code:02x}" if code < 256 else rf"\u{code:04x}" if code < 65536 else rf"\U{code:08x}"
    return _SHORT.get(character, written)


def escape(text: str, most: int | None = None) -> str:
    """`visible` text that plotly prints letter by letter: markup and `$`, which starts formulas, become entities.

    Quotation marks stay: plotly decodes numbered entities and a few named ones, and `&quot;` is none of them.
    """
    return html.escape(visible(text, most), quote=False).replace("$", "&#36;")


def quoted(text: str, most: int | None = 20) -> str:
    """`escape` in quotation marks, so that leading spaces show; how labels name a token."""
    return f"“{escape(text, most)}”"
