"""Folders of computed weights that are either whole or absent.

A folder is filled under a temporary name beside its final one and renamed only when complete, so a killed process
leaves nothing that looks finished and two processes that fill the same folder both succeed. `manifest.json` lists the
size and SHA-256 of every file, and a folder is used only after its bytes were read back and agree: a truncated or
altered file is reported and the folder made anew. SHA-256 because processors have instructions for it: 1.8 GB/s on one
core where it was measured, 0.3 s for the demo model's 538 MB and 2.6 times faster than BLAKE2b; the weaker CRC-32 would
save 0.1 s. It guards against accidents, not against somebody who can write to the folder.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from interp.errors import StorageError
from interp.files import places
from interp.files.private import cache_home as cache_home
from interp.files.writing import write

logger = logging.getLogger(__name__)

# Of the folder, its manifest and what was checked before it was filled; a change of one takes the next number and never
# reads the old ones. v2: nothing of the source was left out.
FORMAT = "v2"
MANIFEST = "manifest.json"
KEEPS_CHANGE_TIMES = os.name != "nt"  # Windows' st_ctime is when a file was made
CLOCK_TICK = 0.02  # seconds; Linux' clocks of files move on every 1 to 10 ms
UNHELD_FOR = 60  # seconds after which a temporary folder is held by the process that fills it
ABANDONED_AFTER = 6 * 3600  # seconds after which a temporary folder belongs to a process that died


class DamagedError(Exception):
    """A cached folder does not hold what its manifest says."""


def weights_home() -> Path:
    """The folder of dequantised weights in the present format."""
    return cache_home() / "weights" / FORMAT


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(source: Path) -> str:
    """What changes whenever a file is changed or another takes its place: with the time of its last change (ctime),
    which nobody can set back, besides device, inode, size and modification time.

    A change right after this call has a later time: where the last one was just now, it waits for the clock to move on.
    """
    status = source.stat()
    if (wait := status.st_ctime + CLOCK_TICK - time.time()) > 0:
        time.sleep(min(wait, CLOCK_TICK))
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def source_sha256(source: Path, home: Path) -> str:
    """SHA-256 of a source file, remembered under its `identity` so that it is computed once.

    Each memory is a file of its own: nothing is shared between processes that would need a lock.
    """
    known_as = identity(source)
    memory = home / "sources" / hashlib.sha256(known_as.encode()).hexdigest()
    if KEEPS_CHANGE_TIMES:
        try:
            remembered = memory.read_text(encoding="ascii")
            if re.fullmatch("[0-9a-f]{64}", remembered):
                return remembered
        except (OSError, ValueError):
            pass
    digest = file_sha256(source)
    if KEEPS_CHANGE_TIMES and identity(source) == known_as:
        try:
            write(memory, digest)
        except StorageError as error:
            logger.debug("cannot remember the checksum of %s: %s", source, error)
    return digest


class ClosedError(OSError):
    """A cached folder may be whole, but this user may not look."""


def is_whole(folder: Path) -> bool:
    """Whether a cached folder can be used. A damaged one is reported in one line and counts as absent.

    Raises `ClosedError` where this user may not read it: it is another user's, and not to be made anew.
    """
    try:
        check(folder)
    except FileNotFoundError:
        return False
    except DamagedError as damage:
        logger.warning("the cached weights in %s are damaged (%s): making them anew", folder, damage)
        return False
    return True


def check(folder: Path) -> None:
    """Read a cached folder back; raises `FileNotFoundError` where there is none, `DamagedError` where bytes differ, and
    `ClosedError` where it cannot be looked at."""
    try:
        _check(folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ClosedError(f"{error.filename or folder}: {error.strerror or error}") from None


def _check(folder: Path) -> None:
    if not stat.S_ISDIR(_mode(folder)):
        raise FileNotFoundError(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST} is unreadable: {error!r}") from None
    try:
        for name, (size, _) in expected.items():  # sizes first: they cost nothing and catch every truncation
            found = (folder / name).stat().st_size
            if found != size:
                raise DamagedError(f"{name} has {found} bytes instead of {size}")
        for name, (_, digest) in expected.items():
            if file_sha256(folder / name) != digest:
                raise DamagedError(f"the checksum of {name} differs")
    except PermissionError:
        raise
    except OSError as error:
        raise DamagedError(f"a file cannot be read: {error}") from None


def _mode(folder: Path) -> int:
    try:
        return folder.stat().st_mode
    except NotADirectoryError:  # a file lies where a folder should
        raise FileNotFoundError(folder) from None


@contextmanager
def filled(folder: Path, provenance: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to write into; on a clean exit it becomes `folder`, with a manifest, in one step.

    On an exception it is deleted and `folder` is what it was. A whole `folder` that appeared meanwhile (another process
    was faster) is kept and ours dropped; a damaged one is replaced. Raises `OSError` where the disk does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    draft = _temporary_sibling(folder)
    draft.mkdir()
    held = places.held_folder(draft)
    try:
        yield draft
        manifest = {"format": FORMAT, **provenance, "files": _listing(draft)}
        _open_alike(draft, write(draft / MANIFEST, json.dumps(manifest, indent=1)).stat().st_mode)
        with _one_at_a_time(folder.parent):
            _publish(draft, folder)
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Let one process at a time publish in a folder, or one would take away what another has just put right.

    Where the system has no such locks (Windows) nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    held = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)  # which gives the lock back


def _publish(draft: Path, folder: Path) -> None:
    while True:
        try:
            os.replace(draft, folder)  # succeeds where the target is absent or an empty folder
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            check(folder)
            return
        except FileNotFoundError:
            continue  # somebody else took it away: try again
        except DamagedError:
            aside = _temporary_sibling(folder)
            with suppress(FileNotFoundError):
                os.replace(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)


def _listing(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of every file, each synced: what the manifest says is on the disk before the manifest is."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        places.sync(path)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    }


def _open_alike(folder: Path, mode: int) -> None:
    """Give every file the mode of one that was made as this user makes files: safetensors lets nobody else read its
    own, so a cache for several users would have weights for one."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(stat.S_IMODE(mode))


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _sweep(home: Path) -> None:
    """Delete what processes that died have left behind: nobody holds it, or, where nothing can be held, it is old."""
    for draft in home.glob(".*.tmp"):
        try:
            age = time.time() - draft.stat().st_mtime
            held = places.held_folder(draft) if age > UNHELD_FOR else None
            if held is not None or age > ABANDONED_AFTER:
                shutil.rmtree(draft, ignore_errors=True)
            if held is not None:
                os.close(held)
        except OSError:
            continue
