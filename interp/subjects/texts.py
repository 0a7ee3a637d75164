"""Texts to read: the one that every Python brings along, or a file the user names.

The default text is `pydoc_data.topics`, the help topics of the Python language reference. It is copyright of the Python
Software Foundation, under the PSF License Version 2, and is read from the running interpreter, never copied into this
project. Its wording follows the Python version, so a number is comparable only with the version beside it.
"""

from pathlib import Path

from interp.errors import InterpError
from interp.files import reading

BYTE_ORDER_MARK = "\ufeff"


class TextError(InterpError, ValueError):
    """A text that cannot be read, with the reason."""


def demo_documents() -> dict[str, str]:
    """The help topics by their keys, sorted: 79 texts on Python 3.11.7."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise TextError("this Python comes without its help topics (pydoc_data); name a text file instead") from None
    return {key: topics[key] for key in sorted(topics)}


def demo_text() -> str:
    """The help topics joined by newlines in sorted order of their keys (465,048 characters on Python 3.11.7)."""
    return "\n".join(demo_documents().values())


def read_text(path: str | Path) -> str:
    """The UTF-8 text of a file, as it is but for a leading byte-order mark.

    Raises `TextError` for a missing or unreadable file, a folder, a pipe or a device, more than 100 MB, bytes that are
    not UTF-8, and white space only.
    """
    text = reading.read_text(path, "text file", TextError).removeprefix(BYTE_ORDER_MARK)
    if not text.strip():
        raise TextError(f"{path} is empty: it has no visible text; name a file with text in it")
    return text
