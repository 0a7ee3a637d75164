"""Folders that only this user can have made and changed, and what there is in their place where there can be none."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

from interp.errors import StorageError

logger = logging.getLogger(__name__)


class NoHomeError(StorageError):
    """This user has no folder to keep anything in: no home is known, as in a container with a number for a user."""


def cache_home() -> Path:
    """The folder of all that can be computed or fetched again: `$INTERP_CACHE`, or the system's place for it.

    Raises `StorageError` where the variable names the home of nobody, `NoHomeError` where it names nothing and the
    system knows no home.
    """
    if named := os.environ.get("INTERP_CACHE"):
        return expanded(named, "INTERP_CACHE")
    try:
        home = Path(platformdirs.user_cache_dir("interp")).expanduser()
    except RuntimeError:
        home = Path()
    if not home.is_absolute():  # some versions leave the `~` that they know no meaning of
        raise NoHomeError("this user has no home folder to keep anything in; set INTERP_CACHE to a folder.")
    return home


def expanded(path: str | Path, what: str) -> Path:
    """A path with the user's home in the place of `~`. Raises `StorageError` where nobody has such a home.

    what: where the path comes from, in words.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise StorageError(
            f"{what}: there is no home folder for {Path(path).parts[0]} in {path}; write the path out."
        ) from None


def private_folder(*names: str) -> Path:
    """A folder of this user's own below `cache_home`, which nobody else can write to or read; made if it is missing.

    Where none can be made there it is one of this process, removed when that ends, and a warning says so once. Raises
    `StorageError` where what is there is a link, another user's, or open to others.
    """
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    try:
        root = cache_home() / f"private-{user}"
        root.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(root):
            root.mkdir(mode=0o700)
        found = os.lstat(root)
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "geteuid") and not _only(user, found)):
            raise StorageError(f"{root} is not a folder of this user alone, so what lies in it is not used; remove it.")
        folder = root.joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
    except NoHomeError as error:
        return _of_this_process(str(error), names)
    except OSError as error:
        return _of_this_process(f"cannot make the folder {root}: {error.strerror or error}; set INTERP_CACHE.", names)
    return folder


def _of_this_process(why: str, names: tuple[str, ...]) -> Path:
    try:
        folder = _temporary(why).joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"no folder can be made to keep anything in ({why} {error.strerror or error}); set INTERP_CACHE to one."
        ) from None
    return folder


@cache
def _temporary(why: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="interp-"))  # of mode 0700, under a name that nobody can know before
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    logger.warning("%s Until then what is computed is kept in %s, until this process ends.", why, folder)
    return folder


def _only(user: int, found: os.stat_result) -> bool:
    return found.st_uid == user and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
