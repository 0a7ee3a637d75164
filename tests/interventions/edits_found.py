"""Every attention edit that there is, with the settings under which tests look at it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from interp.interventions import AttentionEdit, available

EDITS: dict[str, type[AttentionEdit]] = {
    name: cls for name, cls in available().items() if issubclass(cls, AttentionEdit)
}


def examples() -> dict[str, AttentionEdit]:
    """`EXAMPLES` of `tests/interventions/test_NAME.py` for each edit, or the edit with its default settings.

    Each should change the attention of a text of twelve tokens.
    """
    found: dict[str, AttentionEdit] = {}
    for name, cls in EDITS.items():
        own = f"tests.interventions.test_{name}"
        given = getattr(import_module(own), "EXAMPLES", None) if find_spec(own) else None
        found |= {f"{name}-{i}": edit for i, edit in enumerate(given or [cls()])}
    return found


EXAMPLES = examples()
