"""Rows of a Parquet file with the pictures that it holds. It is decoded in a process of its own (`interp.files.apart`):
a kilobyte can hold billions of equal numbers, and who made the file is not known."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.files.apart import decoded
from interp.files.reading import read_bytes

MOST_BYTES = 2_000_000_000
MOST_ROWS = 200_000
PICTURE = "image"
"""The column with pictures, each an object of `bytes`."""


@dataclass(frozen=True)
class Held:
    """A picture in memory, as its file has it; called, it is opened."""

    content: bytes

    def __call__(self) -> Any:
        from PIL import Image, UnidentifiedImageError

        from interp.vision.pictures import FORMATS

        try:
            return Image.open(io.BytesIO(self.content), formats=FORMATS)
        except UnidentifiedImageError:
            raise InterpError(
                "a picture in the Parquet file is no image that can be read; download the file again."
            ) from None


def rows_with_pictures(path: Path) -> list[tuple[Mapping[str, Any], Callable[[], Any]]]:
    """The rows without their pictures, and the pictures. Raises InterpError where pyarrow is not installed, the file is
    no Parquet file, or a row has no picture."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InterpError(f"{path.name} is read with pyarrow, which is not installed: pip install pyarrow.")
    about, pieces = decoded("interp.tasks._parquet", read_bytes(path, "Parquet file", most=MOST_BYTES),
                            f"{path} is no Parquet file of questions with pictures")  # fmt: skip
    return [(row, Held(bytes(piece))) for row, piece in zip(about["rows"], pieces, strict=True)]


def example() -> bytearray:
    """A small table: decoding it once imports what the libraries import late."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_memory_pool(pa.system_memory_pool())  # others set more address space aside than a fork may have
    content = io.BytesIO()
    pq.write_table(pa.table({"idx": [1], "choices": [["a"]], PICTURE: [{"bytes": b"x", "path": "x"}]}), content)
    return bytearray(content.getvalue())


def decode(content: bytearray) -> tuple[dict[str, Any], list[bytes]]:
    """Rows for JSON, and the bytes of the picture of each. Raises ValueError, or what Arrow does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.py_buffer(content))
    if (rows := file.metadata.num_rows) > MOST_ROWS:
        raise ValueError(f"it holds {rows:,} rows, and up to {MOST_ROWS:,} are read")
    table = file.read(use_threads=False)
    if PICTURE not in table.column_names:
        raise ValueError(f"it has no column {PICTURE!r}, only {', '.join(table.column_names[:12])}")
    pictures: list[Any] = [
        one.get("bytes") if isinstance(one, dict) else None for one in table.column(PICTURE).to_pylist()
    ]
    if not all(isinstance(one, bytes) for one in pictures):
        raise ValueError("a row of it has no bytes of a picture")
    kept = [name for name in table.column_names if name not in (PICTURE, "bbox")]
    return {"rows": table.select(kept).to_pylist()}, pictures
