"""The one door through which files that a user names are read as text.

What is no regular file is refused before it is opened: a pipe or a terminal would wait for somebody to write, a device
such as /dev/zero never ends. Reading stops at a bound, whatever a file's size was said to be.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from interp.errors import InterpError

MOST_BYTES = 100_000_000
"""Of a text. Some 20 million words; a larger file is a mistake more often than a text."""
_ELSE = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_bytes(
    path: str | Path, kind: str, error_type: type[InterpError] = InterpError, most: int = MOST_BYTES
) -> bytes:
    """The bytes of a regular file. Raises `error_type` for anything else, and for more than `most` bytes.

    kind: what the file is to be, in words: "text file".
    """
    file = opened(path, kind, error_type)
    with os.fdopen(file, "rb") as content:
        try:
            data = content.read(most + 1)
        except OSError as error:
            raise error_type(f"cannot read the {kind} {path}: {error.strerror or error}.") from None
    if len(data) > most:
        raise error_type(f"{path} has more than {most:,} bytes, the most that is read of a {kind}; name a part of it.")
    return data


def read_text(path: str | Path, kind: str, error_type: type[InterpError] = InterpError, most: int = MOST_BYTES) -> str:
    """The text of a regular file in UTF-8, byte by byte as it is. Raises `error_type`, as `read_bytes` does."""
    data = read_bytes(path, kind, error_type, most)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise error_type(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; convert it to UTF-8 first."
        ) from None


def opened(path: str | Path, kind: str, error_type: type[InterpError] = InterpError) -> int:
    """A descriptor of a regular file, which the caller closes. Raises `error_type` for anything else."""
    try:
        expect_regular(path)
        # without waiting, should a pipe have taken its place meanwhile
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            expect_regular(file)
        except OSError:
            os.close(file)
            raise
    except FileNotFoundError:
        raise error_type(f"there is no {kind} {path}; check the path.") from None
    except IsADirectoryError:
        raise error_type(f"{path} is a folder; name one {kind} in it.") from None
    except OSError as error:
        raise error_type(f"cannot read the {kind} {path}: {error.strerror or error}.") from None
    except ValueError:  # a zero byte, or half a character
        raise error_type(f"no file can be called {str(path)!r}; check the path.") from None
    return file


def expect_regular(path: str | Path | int) -> None:
    """Raises OSError where a path or a descriptor is no regular file, which might never end when it is read."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        what = _ELSE.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {what}, and only regular files are read; write its content into one")
