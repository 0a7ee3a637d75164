"""Results on disk: one NetCDF file a dataset, written in one step, with a checksum, and read behind a door.

A file ends in a line with the SHA-256 of all bytes before it, which HDF5 does not look at. A file that was damaged or
changed is refused by it before anything decodes it. What is decoded, is so in a process of its own
(`interp.files.apart`), since a checksum says nothing about who made it.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from interp.errors import StorageError as StorageError  # its name here is a documented one
from interp.files import places
from interp.files.apart import decoded
from interp.files.writing import Outputs, write
from interp.results.encoding import STORED_BY, dataset_of, encoded
from interp.results.encoding import escape as escape
from interp.results.encoding import unescape as unescape
from interp.results.provenance import provenance as provenance  # and so is this one

MOST_BYTES = 4_000_000_000
_SEAL = re.compile(rb"\ninterp sha256 ([0-9a-f]{64})\n", re.ASCII)
_SEAL_LENGTH = len(b"\ninterp sha256 ") + 64 + 1


def save(dataset: xr.Dataset, path: str | Path, outputs: Outputs | None = None) -> Path:
    """Write `dataset` to `path` as NetCDF; the file appears complete or not at all. Makes missing folders.

    outputs: what it appears together with (`interp.files.writing.Outputs`); None: it appears at once.

    Raises `StorageError` for an attribute that is neither string, number, boolean nor a nest of them, for names and
    types that NetCDF has not, and where the disk refuses.

    Examples:
        >>> path = interp.storage.save(results["text_sinks"], "sinks.nc")
        >>> interp.storage.load(path).equals(results["text_sinks"])
        True
    """
    write(path, as_bytes(dataset), outputs)
    return Path(path)


def as_bytes(dataset: xr.Dataset) -> bytes:
    """The content of the file that `save` writes. Errors are those of `save`, but for the disk's."""
    if not isinstance(dataset, xr.Dataset):
        what = (  # type: ignore[unreachable]  # who has no type checker learns it here
            "results of several: save them one by one, as in" if isinstance(dataset, Mapping) else "no dataset: pass"
        )
        raise StorageError(f"save takes one dataset, and this is {what} results['text_sinks'].")
    return _sealed(encoded(dataset))


def load(path: str | Path) -> xr.Dataset:
    """The dataset that `save` wrote to `path`, in memory.

    Raises `StorageError` where there is none, where the file was damaged or changed since, and where it holds what
    `save` does not write. A NetCDF file of another program is read too, with a warning: nothing tells whether its
    numbers are those that were written.

    Examples:
        >>> path = interp.storage.save(results["text_sinks"], "sinks.nc")
        >>> interp.storage.load(path).attrs["title"] == results["text_sinks"].attrs["title"]
        True
    """
    path = Path(path)
    content, ours = _unsealed(_content(path), path)
    about, pieces = decoded("interp.results.decoding", content, f"{path} is not a NetCDF result")
    if (about.get("attrs", {}).get("stored_by") == STORED_BY) != ours:
        raise _damaged(path)
    if not ours:
        warnings.warn(
            f"{path} has no checksum (it was not written by this version of interp.storage.save), so whether its "
            "numbers are those that were written is not known.",
            stacklevel=2,
        )
    try:
        return dataset_of(about, pieces, ours=ours)
    except Exception as error:  # xarray's decoders break in many ways on what is none of its datasets
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise StorageError(f"{path} is not a NetCDF result, or is damaged: {said}.") from None


def _content(path: Path) -> bytes:
    try:
        places.settle(path.parent)
        if path.is_file():
            if (size := path.stat().st_size) > MOST_BYTES:
                raise StorageError(f"{path} has {size:,} bytes, and results of up to {MOST_BYTES:,} are read.")
            return path.read_bytes()
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    raise StorageError(f"there is no result file {path}; results are written by `interp probe` or interp.storage.save.")


def _sealed(content: bytes) -> bytes:
    return content + b"\ninterp sha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _unsealed(content: bytes, path: Path) -> tuple[bytes, bool]:
    """The content that was sealed, and whether it was. Raises `StorageError` where it is another."""
    if not content.startswith(b"\x89HDF\r\n\x1a\n"):
        raise StorageError(f"{path} is not a NetCDF result, or is cut short: it begins with {content[:8]!r}.")
    found = _SEAL.fullmatch(content[-_SEAL_LENGTH:])
    if found is None:
        return content, False
    content = content[:-_SEAL_LENGTH]
    if hashlib.sha256(content).hexdigest().encode() != found[1]:
        raise _damaged(path)
    return content, True


def _damaged(path: Path) -> StorageError:
    return StorageError(
        f"{path} is damaged, cut short, or was changed after it was written: its checksum is not that of its content; "
        "run again what wrote it."
    )
