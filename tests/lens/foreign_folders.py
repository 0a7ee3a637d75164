"""Folders of models as others may send them: a whole one, and what can be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.models import shared, tokenizer


def whole(path: Path) -> Path:
    """The tiny llama with its tokenizer."""
    shared("llama").save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def said(folder: Path, file: str, **fields: Any) -> None:
    """Change what a JSON file of a folder says; a callable is given what it said."""
    content = json.loads((folder / file).read_text())
    for key, value in fields.items():
        content[key] = value(content.get(key)) if callable(value) else value
    (folder / file).write_text(json.dumps(content))
