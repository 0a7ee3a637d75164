"""Where files go: what a path may lead to, temporary files beside it, and several renames that count as one.

A temporary file is locked while its process lives, so that a lock which can be had tells that the process died: its
file is removed by whoever writes to the folder next. Before several files take their places a journal says which, so
that a process killed between two renames leaves something that the next one finishes.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import secrets
import stat
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

LOCKS = importlib.util.find_spec("fcntl") is not None
"""False on Windows: there temporary files of dead processes stay."""
PART, JOURNAL = "part", "swap"
_NAME = re.compile(r"\.interp-[0-9a-f]{16}\.(part|swap)")
_PUBLIC = re.compile(r"[^./\0][^/\0]*\.(nc|html?|md)", re.IGNORECASE)
"""What a journal may replace: results and pages, nothing hidden. A folder from elsewhere may hold a journal too."""
MOST_LINKS = 40  # as many as Linux follows
MOST_JOURNAL = 1 << 20  # bytes


def target(path: Path) -> Path:
    """The place that `path` means: links are followed, to a file or to nothing.

    Raises OSError for a folder, a pipe or a device, for a file that may not be written, and for a link that somebody
    else put into a folder for all (which Linux would not follow either).
    """
    try:
        named = os.fsencode(path)
    except UnicodeEncodeError:
        named = b"\0"
    if b"\0" in named:
        raise OSError(errno.EINVAL, "no file can have this name")
    for _ in range(MOST_LINKS):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return path.absolute()
        if not stat.S_ISLNK(found.st_mode):
            break
        folder = path.parent.stat()
        shared = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
        if shared and found.st_uid not in (_user(), folder.st_uid):
            raise OSError(errno.EACCES, "it is a link that another user put into a shared folder")
        path = path.parent / os.readlink(path)
    else:
        raise OSError(errno.ELOOP, "its links lead in a circle")
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, "Is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and only files are replaced")
    if not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, "the file there is write-protected")
    return path.absolute()


def begin(folder: Path, kind: str) -> tuple[Path, int]:
    """A new file in `folder`, empty, open and held by this process: (path, descriptor)."""
    while True:
        path = folder / f".interp-{secrets.token_hex(8)}.{kind}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        hold(file)
        if os.fstat(file).st_nlink:
            return path, file
        os.close(file)  # somebody swept it before it was held


def hold(file: int) -> bool:
    """Say that this process lives and has the file. False where another one holds it, or the system has no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def held_folder(folder: Path) -> int | None:
    """A descriptor of a folder that says that this process lives; None where another one holds it, or nothing can."""
    if not LOCKS:
        return None
    file = os.open(folder, os.O_RDONLY)
    if hold(file):
        return file
    os.close(file)
    return None


def swap(folder: Path, moves: Sequence[tuple[str, str]]) -> None:
    """Let files of `folder` take the places of others: (temporary name, name) in this order.

    Killed in between, the rest is done by the next `settle`. Raises OSError.
    """
    if len(moves) == 1:
        _rename(folder, moves)
        return
    draft, file = begin(folder, PART)
    journal = draft.with_suffix(f".{JOURNAL}")
    try:
        content = json.dumps(list(moves)).encode()
        if os.write(file, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
        os.replace(draft, journal)
        sync(folder)
        try:
            _rename(folder, moves)
        except BaseException:  # Ctrl-C too: some have moved, so the others follow
            _rename(folder, moves, again=True)
            raise
    finally:
        os.close(file)
        for left in (draft, journal):
            with suppress(OSError):
                left.unlink()


def settle(folder: Path) -> None:
    """Finish what a killed process had begun to swap in `folder`, and remove what it left; those that live are let be.

    Nothing is raised: what cannot be mended stays.
    """
    if not LOCKS:  # the dead cannot be told from the living
        return
    with suppress(OSError):
        left = [entry.name for entry in os.scandir(folder) if _NAME.fullmatch(entry.name)]
        for name in sorted(left, key=lambda name: name.endswith(PART)):  # journals first: they name parts
            with suppress(OSError):
                _settle_one(folder / name)


def _settle_one(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        about = os.fstat(file)
        ours = stat.S_ISREG(about.st_mode) and about.st_uid == _user() and about.st_nlink
        if not ours or not hold(file):
            return
        if path.suffix == f".{JOURNAL}":
            _rename(path.parent, _moves(os.read(file, MOST_JOURNAL)), again=True)
        path.unlink()
    finally:
        os.close(file)


def _moves(content: bytes) -> list[tuple[str, str]]:
    """What a journal says, or nothing where it is none of ours."""
    try:
        moves = [(str(draft), str(name)) for draft, name in json.loads(content)]
    except (ValueError, TypeError, RecursionError):
        return []
    ours = all(_NAME.fullmatch(draft) and _PUBLIC.fullmatch(name) for draft, name in moves)
    return moves if ours else []


def _rename(folder: Path, moves: Sequence[tuple[str, str]], again: bool = False) -> None:
    """Again: some of it may have been done before, and what cannot be done does not keep the rest from it."""
    for draft, name in moves:
        with suppress(OSError) if again else nullcontext():
            os.replace(folder / draft, folder / name)
    sync(folder)


def sync(path: Path) -> None:
    """Make what was written to a file, or renamed in a folder, last."""
    if not LOCKS:  # Windows opens no folders
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        os.close(file)


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0
