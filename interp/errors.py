"""Errors that a user can act on.

Each message is one sentence that says what was found and what would work. The command line prints it as one line and
exits with code 2; nothing else is ever swallowed.
"""

from __future__ import annotations


class InterpError(Exception):
    """Something the user asked for cannot be done; the message says what to do instead.

    Examples:
        >>> interp.probe(lens, "")
        Traceback (most recent call last):
        ...
        interp.errors.InterpError: ...
    """


class UnsupportedModelError(InterpError):
    """A model, or one feature of its attention, that would otherwise be approximated silently.

    Examples:
        >>> from transformers import MambaConfig, MambaForCausalLM
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
        >>> interp.load(MambaForCausalLM(MambaConfig(**shape)))
        Traceback (most recent call last):
        ...
        interp.errors.UnsupportedModelError: ...
    """


class UnknownAttributeError(InterpError, AttributeError):
    """A method or attribute of TransformerLens that a Lens does not have; the message says what there is instead.

    Examples:
        >>> lens.W_pos
        Traceback (most recent call last):
        ...
        interp.errors.UnknownAttributeError: ...
    """


class UnknownNameError(InterpError, KeyError):
    """A name that does not exist; the message suggests the nearest one.

    Examples:
        >>> interp.probe(lens, prompt, ["text_sink"])
        Traceback (most recent call last):
        ...
        interp.errors.UnknownNameError: ...text_sinks...
    """

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class StorageError(InterpError, ValueError):
    """A file that cannot be written, or that is damaged, foreign or too large to be read.

    Examples:
        >>> interp.storage.load("absent.nc")
        Traceback (most recent call last):
        ...
        interp.errors.StorageError: there is no result file absent.nc; ...
    """
