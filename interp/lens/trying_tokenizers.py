"""Tokenizers are tried in a process of their own before they are loaded here.

The file of a tokenizer is a program for a library written in Rust, and some make it end the process: they double a text
thirty times over, or ask for a table of 4 GB. That cannot be caught, so it happens elsewhere first, to a short text.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.files.apart import NoAnswerError, answered

SECONDS = 4
MOST_BYTES = 256_000_000
"""Of a tokenizer.json; those of the largest vocabularies have 40 MB."""
IDS = 500
TEXT = "The quick brown fox jumps over the lazy dog; THE QUICK BROWN FOX.\n\t0123456789 (x + y) é ☃ 漢字 {}[]<>_'\"/"


def try_apart(file: Path) -> None:
    """Raise InterpError where a tokenizer.json takes time, memory or the process of who reads it."""
    if (size := file.stat().st_size) > MOST_BYTES:
        raise InterpError(f"{file} has {size:,} bytes, more than any tokenizer; download it again.")
    try:
        answered(__name__, file.read_bytes(), SECONDS)
    except NoAnswerError as error:
        why = "takes longer than any does" if error.late else "needs more memory than any does, or ends the process"
        raise InterpError(
            f"the tokenizer in {file} {why}, so it is not loaded; pass tokens, or give interp.load another tokenizer."
        ) from None


def example() -> bytes:
    """Practice for the other process: nothing that is a tokenizer."""
    return b"{}"


def decode(content: bytearray) -> tuple[dict[str, Any], Iterable[bytes]]:
    """Called in the other process. What raises here will raise there, and is told there."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content.decode())
        tokenizer.no_padding()  # both are switched off where it is used
        tokenizer.no_truncation()
        tokenizer.decode(tokenizer.encode(TEXT).ids)
        tokenizer.decode(list(range(min(IDS, tokenizer.get_vocab_size()))), skip_special_tokens=False)
    except BaseException:  # a panic is no Exception
        return {"raised": True}, ()
    return {"raised": False}, ()
