"""What reads a result says in a sentence that it cannot, where a dataset is none of those that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from interp.errors import InterpError

_OTHERS = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What reading another dataset ends in: variables, dimensions or labels that are not there, or of another type."""


class ResultError(InterpError, ValueError):
    """A dataset that lacks something that a result has, or has it in another shape.

    Examples:
        >>> import xarray as xr
        >>> interp.TextSinks().findings(xr.Dataset())
        Traceback (most recent call last):
        ...
        interp.results.reading.ResultError: the findings of text_sinks cannot be read off this dataset, which lacks ...
    """


@contextmanager
def read_off(what: str) -> Iterator[None]:
    """Make a sentence of what reading `what` off a dataset raises; the error itself stays its cause."""
    try:
        yield
    except InterpError:
        raise
    except _OTHERS as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ResultError(
            f"{what} cannot be read off this dataset, which lacks something or has another shape ({said}); pass a "
            "result as interp made it."
        ) from error
