"""What the page at hand shows, for the page Export: figures, data, and the Python lines that make them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import streamlit as st
import xarray as xr

from interp.results import repeating


@dataclass
class View:
    """Collected while a page draws itself."""

    page: str
    figures: dict[str, go.Figure] = field(default_factory=dict)
    data: dict[str, xr.Dataset] = field(default_factory=dict)
    code: list[str] = field(default_factory=list)
    """Python statements, in order."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What was made of it so far, by file name."""

    def file(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The file called `name`, made the first time that it is asked for."""
        if name not in self.files:
            self.files[name] = make()
        return self.files[name]


def begin(page: str) -> View:
    """A new page begins to draw itself."""
    view = View(page)
    st.session_state["view"] = view
    return view


def current() -> View | None:
    """What the page before this one showed."""
    return st.session_state.get("view")


def code(*statements: str) -> None:
    """Statements that the page's view needs, each once."""
    shown = current()
    if shown is not None:
        shown.code += [s for s in statements if s not in shown.code]


def drawn(name: str, figure: go.Figure) -> None:
    shown = current()
    if shown is not None:
        shown.figures[name] = figure


def loaded(read: Any) -> None:
    """The lines that load the model and the text."""
    code(*repeating.loaded(read.model, read.python, read.dtype))


def probed(read: Any, wanted: list[Any], results: dict[str, xr.Dataset]) -> None:
    loaded(read)
    code(*repeating.probed(wanted, read.tokens))
    shown = current()
    if shown is not None:
        shown.data |= results
