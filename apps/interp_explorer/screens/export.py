"""Take the view with you: report, figures, data, and the Python code that makes them again."""

from collections.abc import Callable

import streamlit as st

from interp.errors import InterpError
from interp_explorer import exporting, view
from interp_explorer.text import plain

st.title("Export")
shown = view.current()
if shown is None or not (shown.figures or shown.data):
    st.info("There is no view to export yet: open a page, and come back.")
    st.stop()
st.caption(plain(f"What the page {shown.page} showed last."))


def offer(label: str, file: str, content: str | bytes | Callable[[], bytes], key: str) -> None:
    """A download button; content that is a function is made when the button is pressed."""
    kind = exporting.MIME[file.rpartition(".")[2]]
    st.download_button(label, content, file, kind, key=key, on_click="ignore")


st.subheader("Python")
code = exporting.python(shown)
st.code(code, language="python", wrap_lines=True)
offer("Python script", "view.py", code, "python")

if shown.figures:
    st.subheader("Figures")
    name = st.selectbox("Figure", list(shown.figures), key="figure", format_func=lambda n: n.replace("_", " "))
    kind = st.segmented_control("Format", ["png", "svg", "html"], default="png", key="format", required=True)
    file, chosen = f"{name}.{kind}", shown.figures[name]
    try:  # before the button is pressed, so that what is missing here is said on the page
        with st.spinner(f"Drawing {file}", show_time=True):
            offer(file, file, shown.file(file, lambda: exporting.figure(chosen, kind)), "figure file")
    except InterpError as error:
        st.error(plain(str(error)))

if shown.data:
    st.subheader("Data")
    result = st.selectbox("Result", list(shown.data), key="result")
    dataset = shown.data[result]
    variable = str(st.selectbox("Variable as a table", list(dataset.data_vars), key="variable"))
    offer("NetCDF (all of it)", f"{result}.nc", lambda: exporting.netcdf(dataset), "netcdf")
    offer(
        "Parquet (one variable)",
        f"{result}.{variable}.parquet",
        lambda: exporting.parquet(dataset, variable),
        "parquet",
    )

    st.subheader("Report")
    results = exporting.probed(shown)
    if results:
        offer("HTML report", "report.html", lambda: exporting.report(results), "report")
    else:
        st.info("A report is about probe results, and this view shows none: look at Overview first.")
