"""A file that somebody named and that cannot be read: one sentence that says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import InterpError


@contextmanager
def readable(path: str | Path, kind: str, inside: str, error_type: type[InterpError]) -> Iterator[None]:
    """Raises `error_type` where the file that is read inside is missing, a folder, or refused by the system.

    kind: what it is, "text file"; inside: what to name instead of a folder, "one text file".
    """
    try:
        yield
    except FileNotFoundError:
        raise error_type(f"there is no {kind} {path}; check the path") from None
    except IsADirectoryError:
        raise error_type(f"{path} is a folder; name {inside} in it") from None
    except OSError as error:
        raise error_type(f"cannot read the {kind} {path}: {error.strerror or error}") from None
