"""Results of a folder, and tables of them, drawn with the rows that no other row beats."""

from __future__ import annotations

import io
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from interp.errors import InterpError
from interp.figures._text import escape, visible
from interp.figures._theme import BLUE, GREY, ORANGE, finish
from interp.files.apart import decoded
from interp.files.reading import read_bytes

KINDS = (".nc", ".parquet", ".csv")
MOST = 200  # files listed
MOST_BYTES = 100_000_000  # of a table
WALKED = 50_000  # files and folders looked at to find them


def results_in(folder: str) -> dict[str, Path]:
    """Result files in a folder and below it by their names in it, the folder's own first.

    Raises InterpError where there is no such folder, nothing in it, or so much that it can hardly be meant.
    """
    path = _folder(folder)
    entries = list(islice(path.rglob("*"), WALKED + 1))
    if len(entries) > WALKED:
        raise InterpError(f"the folder {folder} holds more than {WALKED:,} files; give one nearer to the results.")
    files = (file for file in entries if file.suffix in KINDS and file.is_file())
    found = sorted(files, key=lambda file: (len(file.parts), file))
    if not found:
        raise InterpError(f"the folder {folder} holds no results (*.nc, *.parquet or *.csv).")
    return {visible(str(file.relative_to(path))): file for file in found[:MOST]}


def _folder(name: str) -> Path:
    with suppress(OSError, RuntimeError):  # a name that is too long, the home of a user who does not exist
        path = Path(name).expanduser()
        if path.is_dir():
            return path
    raise InterpError(f"there is no folder {name}; give one that a study or `interp probe` wrote.")


def read(path: Path) -> pd.DataFrame:
    """A table from a parquet or CSV file. Raises InterpError where it is none, or is too large to be shown."""
    try:
        content = read_bytes(path, "table", most=MOST_BYTES)
        return _parquet(path, content) if path.suffix == ".parquet" else pd.read_csv(io.BytesIO(content), comment="#")
    except InterpError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:  # pyarrow's and pandas' own errors derive from these
        raise InterpError(
            f"{path.name} is not a table that can be read: {' '.join(str(error).split())[:200]}"
        ) from None


def _parquet(path: Path, content: bytes) -> pd.DataFrame:
    """Decoded in a process of its own: a small file may hold a large table."""
    import pyarrow as pa

    (stream,) = decoded("interp_explorer.parquet_in", content, f"{path.name} is not a table").pieces
    table = pa.ipc.open_stream(pa.py_buffer(stream)).read_all()
    table.validate(full=True)
    found: pd.DataFrame = table.to_pandas()
    return found


def rows(variable: xr.DataArray) -> pd.DataFrame:
    """A row for each number of a variable, with its coordinates; one row for a single number."""
    return (variable if variable.dims else variable.expand_dims("row")).to_dataframe().reset_index()


def different(values: pd.Series) -> list[Any]:
    """The different values of a column without its empty cells, in order; by their text where they have none."""
    found = values.dropna().unique().tolist()
    try:
        return sorted(found)
    except TypeError:
        return sorted(found, key=str)


def _cell(value: Any) -> str:
    """What stands in a cell; an empty one is empty."""
    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def pareto(points: pd.DataFrame, x: str, y: str, *, less_x: bool, less_y: bool) -> np.ndarray:
    """Which rows no other row beats in both columns; rows without both numbers never count."""
    values = points[[x, y]].to_numpy(dtype=float, copy=True)
    values[:, 0] *= 1 if less_x else -1
    values[:, 1] *= 1 if less_y else -1
    best: np.ndarray = np.isfinite(values).all(axis=1)
    for i in np.flatnonzero(best):
        no_worse = (values <= values[i]).all(axis=1) & (values < values[i]).any(axis=1)
        best[i] = not no_worse.any()
    return best


def front(points: pd.DataFrame, x: str, y: str, *, less_x: bool = True, less_y: bool = True) -> go.Figure:
    """Every row at its two numbers, and a line through those that no other row beats in both.

    less_x, less_y: whether the smaller number is the better one.
    """
    best = pareto(points, x, y, less_x=less_x, less_y=less_y)
    told = points.select_dtypes(exclude="number")
    words = pd.Series([escape(" · ".join(map(_cell, row))) for row in told.itertuples(index=False)], points.index, str)
    fig = go.Figure()
    for name, rows, colour in (("other rows", ~best, GREY), ("rows that none beats", best, ORANGE)):
        fig.add_scatter(
            x=points[x][rows], y=points[y][rows], mode="markers", marker={"color": colour, "size": 8}, name=name,
            text=words[rows] if len(words) else None, hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        )  # fmt: skip
    beside = points[best].sort_values([x, y])
    fig.add_scatter(
        x=beside[x], y=beside[y], mode="lines", line={"color": BLUE, "width": 1, "shape": "hv" if less_x else "vh"},
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    fig.update_xaxes(title_text=escape(x)).update_yaxes(title_text=escape(y))
    return finish(fig, f"{escape(y)} against {escape(x)}", 460)
