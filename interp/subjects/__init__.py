"""Models and texts to study that need no model hub."""

from interp.subjects.texts import TextError, demo_text, read_text

__all__ = ["TextError", "demo_text", "read_text"]
