"""What only the author of a method can know stands beside the method's own test, and is found there by name.

A method called NAME needs no test file to be tested with all others. Where it has one, `test_NAME.py` in the folder of
its kind, module-level names in it are taken up; which ones is said where they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def said(folder: str, name: str, what: str, default: Any) -> Any:
    """The value of `what` in `tests/FOLDER/test_NAME.py`, or `default`."""
    module = f"tests.{folder}.test_{name.replace('-', '_')}"
    return getattr(import_module(module), what, default) if find_spec(module) else default
