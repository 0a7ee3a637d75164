"""Errors that a user can act on.

Each message is one sentence that says what was found and what would work. The command line prints it as one line and
exits with code 2; nothing else is ever swallowed.
"""

from __future__ import annotations


class InterpError(Exception):
    """Something the user asked for cannot be done; the message says what to do instead."""


class UnsupportedModelError(InterpError):
    """A model, or one feature of its attention, that would otherwise be approximated silently."""


class UnknownNameError(InterpError, KeyError):
    """A name that does not exist; the message suggests the nearest one."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])
