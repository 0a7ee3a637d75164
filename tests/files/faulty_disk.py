"""A disk that fails: what `os` is to the writers, with one call that goes wrong."""

from __future__ import annotations

import errno
import os
from typing import Any

from interp.files import places, writing


class FaultyDisk:
    """Stands for the module `os` in the rooms that write.

    Args:
        room: bytes that can be written before the disk is full.
        most: bytes that one call takes, the rest is for the next.
        failing: names of calls that fail with EIO.
        lying: whether the last byte is lost without an error.
    """

    def __init__(self, room: int = 1 << 40, most: int = 1 << 40, failing: str = "", lying: bool = False) -> None:
        self.room, self.most, self.failing, self.lying = room, most, failing.split(), lying
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        if name in self.failing:
            return self.fail
        return getattr(os, name)

    def fail(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write(self, file: int, content: Any) -> int:
        self.calls += 1
        taken = min(len(content), self.room, self.most)
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= taken
        part = bytes(content[:taken])
        os.write(file, part[:-1] + b"\0" if self.lying else part)
        return taken

    def put_in(self, monkeypatch: Any) -> FaultyDisk:
        for module in (writing, places):
            monkeypatch.setattr(module, "os", self)
        return self
