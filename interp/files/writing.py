"""The one door through which every file of the project is written.

Content is made in memory, written with plain system calls to a temporary file beside its place, read back, synced, and
renamed; whatever fails on the way is an error, and the place is what it was. Files of one command appear together: all
are written first, and then take their places in an order that a journal remembers (`interp.files.places`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from interp.errors import StorageError
from interp.files import places

CHUNK = 1 << 24  # bytes written or read back in one call


def write(path: str | Path, content: bytes | str, outputs: Outputs | None = None) -> Path:
    """Write a file; it appears complete or not at all. Makes missing folders. Returns the path as it was given.

    Args:
        path: the file. A link is followed to the file that it names; the mode of a file that is there is kept.
        content: bytes, or text that becomes UTF-8 (lone surrogates as `\\udc80`).
        outputs: what it appears together with; None: it appears at once.

    Raises `StorageError` where the disk refuses, or where `path` is a folder, a pipe or a device.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    with together(outputs) as files:
        return files.add(path, content)


def together(outputs: Outputs | None) -> AbstractContextManager[Outputs]:
    """`outputs`, which appear when whoever made them is done; for None new ones, which appear after the block."""
    return Outputs() if outputs is None else nullcontext(outputs)


def expect_writable(*paths: str | Path) -> None:
    """Find out before long work whether files can be written, by trying it; nothing is left of the trial.

    Raises `StorageError` for a path that is a folder, a pipe or a device, that is too long, or where the disk refuses.
    """
    for path in paths:
        with _refusals(path):
            target = places.target(Path(path))
            missing = [folder for folder in target.parents if not folder.exists()]
            try:
                _Draft.begin(target).drop()
            finally:
                for folder in missing:  # the innermost first
                    with suppress(OSError):
                        folder.rmdir()


@dataclass
class _Draft:
    """A temporary file, open and locked, that is to take the place of `target`."""

    target: Path
    path: Path
    file: int

    @classmethod
    def begin(cls, target: Path) -> Self:
        target.parent.mkdir(parents=True, exist_ok=True)
        path, file = places.begin(target.parent, places.PART)
        return cls(target, path, file)

    def fill(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            written = os.write(self.file, view[:CHUNK])
            if written <= 0:
                raise OSError(errno.EIO, "the disk took nothing")
            view = view[written:]
        self._resemble_the_old()
        os.fsync(self.file)
        if not self._holds(content):
            raise OSError(errno.EIO, "what was written does not read back")

    def _resemble_the_old(self) -> None:
        """Take the mode and the owner of the file that this one replaces."""
        if not self.target.exists() or not hasattr(os, "fchmod"):  # Windows has neither
            return
        old = self.target.stat()
        os.fchmod(self.file, stat.S_IMODE(old.st_mode))
        if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            with suppress(PermissionError):  # only root gives files away
                os.fchown(self.file, old.st_uid, old.st_gid)

    def _holds(self, content: bytes) -> bool:
        os.lseek(self.file, 0, os.SEEK_SET)
        view = memoryview(content)
        while found := os.read(self.file, CHUNK):
            if found != view[: len(found)]:
                return False
            view = view[len(found) :]
        return not view

    def drop(self) -> None:
        """Remove the temporary file where it has not taken its place."""
        with suppress(OSError):
            os.close(self.file)
        with suppress(OSError):
            self.path.unlink()


class Outputs:
    """Files that appear together, in the order in which they were added: what people open comes last.

    with Outputs() as outputs:
        storage.save(result, "report.sinks.nc", outputs)
        write("report.html", page, outputs)
    """

    def __init__(self) -> None:
        self._drafts: list[_Draft] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            drafts, self._drafts = self._drafts, []
            for draft in drafts:
                draft.drop()

    def add(self, path: str | Path, content: bytes) -> Path:
        """Write `content` beside its place. Arguments and errors are those of `write`."""
        with _refusals(path):
            self._begin(path).fill(content)
        return Path(path)

    def _begin(self, path: str | Path) -> _Draft:
        target = places.target(Path(path))
        if not any(other.target.parent == target.parent for other in self._drafts):
            places.settle(target.parent)
        draft = _Draft.begin(target)
        self._drafts.append(draft)
        return draft

    def _publish(self) -> None:
        by_folder: dict[Path, list[_Draft]] = {}
        for draft in self._drafts:
            by_folder.setdefault(draft.target.parent, []).append(draft)
        for folder, drafts in by_folder.items():
            with _refusals(drafts[-1].target):
                if not places.LOCKS:  # Windows renames no open file
                    for draft in drafts:
                        os.close(draft.file)
                        draft.file = -1
                places.swap(folder, [(draft.path.name, draft.target.name) for draft in drafts])


@contextmanager
def _refusals(path: str | Path) -> Iterator[None]:
    """What the disk says, in a sentence."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}.") from error
