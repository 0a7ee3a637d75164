"""Per-item scores as they are handed in: a pandas DataFrame or an xarray Dataset, checked, with clusters as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.discovery import unknown
from interp.errors import InterpError


@dataclass(frozen=True)
class Items:
    """Scores of some methods on the same items."""

    scores: pd.DataFrame
    """`[item, method]`, floats; NaN where a method has no score."""
    cluster: np.ndarray
    """`[item]`, the number of each item's cluster, from 0."""


def items_of(
    table: pd.DataFrame | xr.Dataset,
    methods: Sequence[str] | None = None,
    item: str = "item",
    cluster: str | None = "cluster",
) -> Items:
    """The scores in a table, one row an item.

    table: a DataFrame with the columns `item` and `cluster` (either may be the index) and a column of scores for each
        method; or a Dataset with the dimension `item`, a coordinate `cluster` along it, and a variable for each method
        along `item`, or one variable along `item` and a dimension whose labels are the methods.
    methods: which columns are scores; None: all but `item`, `cluster` and one called "cluster".
    cluster: what items share that makes their scores alike (document, image, template); None: no two items share
        anything, each is its own cluster.

    Raises InterpError for columns that are not there, items that occur twice, items without a cluster, and scores that
    are no numbers or not finite. A missing score (NaN) is allowed: the item is left out where that method is compared.
    """
    frame = _flat(table, item)
    for name in (item, *([cluster] if cluster is not None else [])):
        if name not in frame.columns:
            hint = " Pass cluster=None if no two items share a document, an image or a template." * (name == cluster)
            raise InterpError(f"the scores have no column {name!r}; they have {_listed(frame.columns)}.{hint}")
    columns = [c for c in frame.columns if c not in (item, cluster, "cluster")] if methods is None else list(methods)
    for name in columns:
        if name not in frame.columns:
            raise unknown("column of scores", str(name), [str(c) for c in frame.columns])
    if not columns or not len(frame):
        raise InterpError("there are no scores: pass a table with a row an item and a column a method.")
    if frame[item].isna().any() or frame[item].duplicated().any():
        twice = frame.loc[frame[item].isna() | frame[item].duplicated(), item].iloc[0]
        raise InterpError(f"every item has one row and an id of its own, but {twice!r} occurs twice or is empty.")
    scores = pd.DataFrame({str(name): _numbers(frame[name], str(name)) for name in columns})
    if cluster is None:
        return Items(scores, np.arange(len(scores)))
    if frame[cluster].isna().any():
        lost = frame.loc[frame[cluster].isna(), item].iloc[0]
        raise InterpError(f"the item {lost!r} has no {cluster}; every item belongs to one.")
    return Items(scores, np.asarray(pd.factorize(frame[cluster])[0]))


def _flat(table: Any, item: str) -> pd.DataFrame:
    if isinstance(table, xr.Dataset):
        return _of_dataset(table, item)
    if not isinstance(table, pd.DataFrame):
        raise InterpError(f"scores are a pandas DataFrame or an xarray Dataset, not {type(table).__name__}.")
    if doubled := [str(c) for c in table.columns[table.columns.duplicated()]]:
        raise InterpError(f"two columns of the scores are called {doubled[0]!r}; give each method a name of its own.")
    named = [name for name in table.index.names if name is not None and name not in table.columns]
    return table.reset_index(named) if named else table


def _of_dataset(table: xr.Dataset, item: str) -> pd.DataFrame:
    if item not in table.dims:
        raise InterpError(f"the scores have no dimension {item!r}; they have {_listed(table.dims)}.")
    columns: dict[str, Any] = {item: np.asarray(table[item].values)}
    columns |= {str(n): c.values for n, c in table.coords.items() if n != item and c.dims == (item,)}
    for name, variable in table.data_vars.items():
        if variable.dims == (item,):
            columns[str(name)] = variable.values
        elif len(variable.dims) == 2 and item in variable.dims and len(table.data_vars) == 1:
            (other,) = (dim for dim in variable.dims if dim != item)
            columns |= {str(m): variable.sel({other: m}).values for m in variable[other].values}
        else:
            raise InterpError(
                f"the variable {str(name)!r} lies along {_listed(variable.dims)}; scores are variables along {item!r}, "
                f"or one variable along {item!r} and the methods."
            )
    return pd.DataFrame(columns)


def _numbers(column: pd.Series, name: str) -> np.ndarray:
    try:
        values: np.ndarray = column.to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        raise InterpError(
            f"the column {name!r} holds something that is no number; name the columns of scores."
        ) from None
    if np.isinf(values).any():
        raise InterpError(f"the column {name!r} holds an infinite score; leave the item out, or bound the score.")
    return values


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"


def complete(
    table: pd.DataFrame | xr.Dataset, methods: Sequence[str] | None, item: str, cluster: str | None
) -> tuple[Items, int]:
    """The items that have a score of every method, and how many were left out. Raises InterpError as `items_of` does,
    and where none is left."""
    given = items_of(table, methods, item, cluster)
    whole = given.scores.notna().all(axis=1).to_numpy()
    if not whole.any():
        raise InterpError("no item has a score of every method; name the methods that were run on the same items.")
    return Items(given.scores[whole].reset_index(drop=True), given.cluster[whole]), int((~whole).sum())
