"""Parquet content as an Arrow stream; runs in the process of `interp.files.apart`, since a kilobyte can hold billions
of equal numbers."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MOST_CELLS = 20_000_000

pa.set_memory_pool(pa.system_memory_pool())  # others set more address space aside than a fork may have


def example() -> bytearray:
    """A small table: decoding it once imports what the libraries import late."""
    content = io.BytesIO()
    pq.write_table(pa.table({"number": [1.0], "text": ["a"]}), content)
    return bytearray(content.getvalue())


def decode(content: bytearray) -> tuple[dict[str, Any], list[Any]]:
    """A table as one piece, without what its writer says of types that are not Arrow's own. Raises what Arrow does."""
    file = pq.ParquetFile(pa.py_buffer(content))
    cells = file.metadata.num_rows * max(1, file.metadata.num_columns)
    if cells > MOST_CELLS:
        raise ValueError(f"it holds {cells:,} cells, and up to {MOST_CELLS:,} are read")
    table = file.read(use_threads=False)
    plain = table.cast(pa.schema([pa.field(field.name, _plain(field.type)) for field in table.schema]))
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, plain.schema) as writer:
        writer.write_table(plain)
    return {}, [stream.getvalue()]


def _plain(kind: pa.DataType) -> pa.DataType:
    """Values themselves in place of numbers that stand for them, so that their size is known."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
