"""Files of a view: report, figures, data, and the Python code that makes them again."""

from __future__ import annotations

import io

import plotly.graph_objects as go
import xarray as xr

from interp.errors import InterpError
from interp.results import repeating
from interp.results.storage import as_bytes
from interp_explorer import tables
from interp_explorer.view import View

MIME = {
    "html": "text/html",
    "png": "image/png",
    "svg": "image/svg+xml",
    "nc": "application/x-netcdf",
    "parquet": "application/vnd.apache.parquet",
    "py": "text/x-python",
}


def python(shown: View) -> str:
    """A script that makes the view's figures again."""
    return repeating.script(shown.code, f'The view "{shown.page}" of the explorer.') + "\n"


def figure(fig: go.Figure, kind: str) -> bytes:
    """A figure as html, png or svg. Raises InterpError where a picture needs a browser that is not here."""
    if kind == "html":
        page: str = fig.to_html(include_plotlyjs=True, config={"displaylogo": False})
        return page.encode()
    try:
        picture: bytes = fig.to_image(format=kind, width=1100, height=fig.layout.height or 600, scale=2)
    except (RuntimeError, ValueError, OSError) as error:  # kaleido drives a Chrome or Chromium of this machine
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InterpError(f"a {kind} is drawn by Chrome or Chromium, which could not be used: {reason}") from error
    return picture


def netcdf(dataset: xr.Dataset) -> bytes:
    return as_bytes(dataset)


def parquet(dataset: xr.Dataset, variable: str) -> bytes:
    """One variable as a table with a row for each of its numbers."""
    out = io.BytesIO()
    tables.rows(dataset[variable]).to_parquet(out, index=False)
    return out.getvalue()


def probed(shown: View) -> dict[str, xr.Dataset]:
    """The probe results of a view: what a report is about."""
    from interp.probes import available

    known = available() | available("images")
    return {name: dataset for name, dataset in shown.data.items() if name in known}


def report(results: dict[str, xr.Dataset]) -> bytes:
    """Probe results as the report that `interp report` writes."""
    from interp.report.html import page

    about = {"command": "interp app", "text": next(iter(results.values())).attrs.get("text", "a text")}
    return page(results, about).encode("utf-8", errors="backslashreplace")
