"""Folders that only this user can have made and changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs

from interp.errors import StorageError


def cache_home() -> Path:
    """The folder of all that can be computed or fetched again: `$INTERP_CACHE`, or the system's place for it."""
    return Path(os.environ.get("INTERP_CACHE") or platformdirs.user_cache_dir("interp")).expanduser()


def private_folder(*names: str) -> Path:
    """A folder of this user's own below `cache_home`, which nobody else can write to or read; made if it is missing.

    Raises `StorageError` where it cannot be made, or where what is there is a link, another user's, or open to others.
    """
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    root = cache_home() / f"private-{user}"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(root):
            root.mkdir(mode=0o700)
        found = os.lstat(root)
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and not _only(user, found)):
            raise StorageError(f"{root} is not a folder of this user alone, so what lies in it is not used; remove it.")
        folder = root.joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {root}: {error.strerror or error}; set INTERP_CACHE.") from None
    return folder


def _only(user: int, found: os.stat_result) -> bool:
    return found.st_uid == user and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
