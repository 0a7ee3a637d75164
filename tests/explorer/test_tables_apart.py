"""Tables of others: what pandas makes of them, or one sentence; a small file does not become a large table."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp.errors import InterpError
from interp_explorer import tables

TABLE = pd.DataFrame(
    {"a": [1.5, None], "b": ["x", "é"], "c": [[1], [2, 3]], "t": pd.to_datetime(["2020", "2021"]), "n": [1, 2]}
)


def test_a_table_is_what_pandas_reads(tmp_path):
    TABLE.to_parquet(tmp_path / "x.parquet")
    pd.testing.assert_frame_equal(tables.read(tmp_path / "x.parquet"), pd.read_parquet(tmp_path / "x.parquet"))


def test_a_billion_equal_numbers_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": np.zeros(30_000_000, dtype="i1")}), path)
    assert path.stat().st_size < 200_000
    with pytest.raises(InterpError, match=r"x\.parquet is not a table.*30,000,000 cells"):
        tables.read(path)


@pytest.mark.parametrize("stored", [True, False])
def test_one_long_text_a_thousand_times_is_refused(stored, tmp_path):
    path = tmp_path / "x.parquet"
    column = pa.DictionaryArray.from_arrays(np.zeros(1000, "i4"), ["x" * 1_000_000])
    pq.write_table(pa.table({"a": column}), path, store_schema=stored)
    assert path.stat().st_size < 200_000
    with pytest.raises(InterpError, match=r"x\.parquet is not a table"):
        tables.read(path)


def test_damaged_tables_are_sentences(tmp_path):
    path, draw = tmp_path / "x.parquet", random.Random(0)
    TABLE.to_parquet(path)
    content, refused = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice([None, draw.randrange(len(content))])])
        try:
            tables.read(path)
        except InterpError:
            refused += 1
    assert refused > 30


def test_a_table_of_too_many_bytes_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_BYTES", 10)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(InterpError, match="more than 10 bytes, the most that is read of a table"):
        tables.read(tmp_path / "x.csv")
