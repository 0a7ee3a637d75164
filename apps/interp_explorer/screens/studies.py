"""Open a folder of results: a study's verdicts and figures, a table's rows filtered, and its Pareto front."""

from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from interp import figures
from interp.errors import InterpError
from interp.icl import studies
from interp.results import repeating, storage
from interp_explorer import charts, study_view, tables, view, waiting
from interp_explorer.text import plain

FEW = 12  # different numbers that are chosen from a list rather than with a slider
LISTED = 5_000  # rows of a variable

shown = view.begin("Studies")
st.title("Studies")
folder = st.text_input(
    "Results folder", "", key="folder", bind="query-params", placeholder="runs/single-layer",
    on_change=waiting.clicked,
    help="What `interp icl`, `interp probe` or a benchmark wrote. Read only.",
)  # fmt: skip
if not folder:
    st.info("Give a folder of results. `interp icl single-layer --out runs/single-layer --quick` makes one.")
    st.stop()
waiting.allowed(("folder", folder), f"opening the folder {folder}")


def open_table(file: Path) -> None:
    table = tables.read(file)
    read = repeating.call("tables.read", f"Path({str(file)!r})")
    view.code("from pathlib import Path", "from interp_explorer import tables", f"table = {read}")
    plain_columns = [name for name in table.columns if not table[name].map(pd.api.types.is_list_like).any()]
    for name in st.multiselect("Filter by", plain_columns, key="filters"):
        table = kept(table, name)
    st.caption(f"{len(table):,} rows")
    st.dataframe(table, hide_index=True, height=300)
    numbers = list(table.select_dtypes("number").columns)
    if len(numbers) < 2 or table.empty:
        return
    st.subheader("Pareto front")
    first, second = st.columns(2)
    x, less_x = axis(first, "x", numbers, 0)
    y, less_y = axis(second, "y", numbers, 1)
    charts.keep(tables.front(table, x, y, less_x=less_x, less_y=less_y), name="pareto", key="pareto")
    view.code(f"{repeating.call('tables.front', 'table', repr(x), repr(y), less_x=less_x, less_y=less_y)}.show()")


def kept(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows that the user keeps, by what stands in one column."""
    values = table[name].dropna()
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > FEW:
        finite = values[np.isfinite(values)]
        ends = float(finite.min()), float(finite.max())
        low, high = st.slider(plain(name), *ends, ends, key=f"f {name}")
        view.code(f"table = table[table[{name!r}].between({low}, {high})]")
        return table[table[name].between(low, high)]
    chosen = st.multiselect(plain(name), tables.different(values), key=f"f {name}")
    if not chosen:
        return table
    view.code(f"table = table[table[{name!r}].isin({chosen})]")
    return table[table[name].isin(chosen)]


def axis(place: st.delta_generator.DeltaGenerator, name: str, numbers: list[str], at_first: int) -> tuple[str, bool]:
    """The column drawn along an axis, and whether less of it is better."""
    with place:
        column = st.selectbox(name, numbers, at_first, key=name)
        better = st.segmented_control(
            f"better {name}", ["less", "more"], default="less", key=f"better {name}", required=True
        )
    return column, better == "less"


def open_result(file: Path) -> None:
    ds = storage.load(file)
    name = file.stem
    view.code(*repeating.opened(name, file))
    shown.data[name] = ds
    if "study" in ds.attrs:
        study = studies.of_result(ds)
        st.subheader(plain(study.title))
        view.code(*repeating.study_made(study))
        study_view.show(study, ds, f"results[{name!r}]")
        return
    st.caption(plain(str(ds.attrs.get("description", ""))))
    for figure_name, figure in figures.figures_of(name).items():
        charts.show(figure, ds, result=name, key=f"opened {figure_name}")
    variable = st.selectbox("Variable", list(ds.data_vars), key="opened variable")
    if variable is not None:
        st.dataframe(tables.rows(ds[variable]).head(LISTED), height=300)


try:
    found = tables.results_in(folder)
    file = found[st.selectbox("Result", list(found), key="file", bind="query-params")]
    (open_result if file.suffix == ".nc" else open_table)(file)
except InterpError as error:
    st.error(plain(str(error)))
