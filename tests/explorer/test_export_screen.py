"""The page Export: files that are made once, and code that makes the view again."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest
from streamlit.testing.v1 import AppTest

from interp import figures
from interp.errors import InterpError
from interp_explorer import exporting
from tests.explorer.opening import collected_figures, opened, sentences

pytestmark = pytest.mark.timeout(600)


def run_code(app: AppTest) -> list[go.Figure]:
    """What the exported code of the page at hand draws."""
    app.switch_page("screens/export.py").run()
    assert sentences(app) == "" or "A report is about probe results" in sentences(app)
    with collected_figures() as shown:
        exec(compile(app.code[0].value, "view.py", "exec"), {})
    return shown


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> list[str]:
    """The kinds of files that figures were drawn into: here without a browser, which takes seconds."""
    kinds: list[str] = []

    def figure(fig: go.Figure, kind: str) -> bytes:
        kinds.append(kind)
        return kind.encode()

    monkeypatch.setattr(exporting, "figure", figure)
    return kinds


def test_a_figure_is_drawn_once_however_often_the_page_runs(drawn):
    app = opened("rank")
    app.switch_page("screens/export.py").run()
    for _ in range(3):
        app.run()
    assert drawn == ["png"]
    app.segmented_control(key="format").set_value("svg").run()
    app.segmented_control(key="format").set_value("png").run()
    assert drawn == ["png", "svg"]
    app.switch_page("screens/rank.py").run()
    app.switch_page("screens/export.py").run()
    assert drawn == ["png", "svg", "png"], "a view that is drawn again is another view"


def test_a_picture_that_cannot_be_drawn_is_a_sentence(monkeypatch):
    def broken(fig: go.Figure, kind: str) -> bytes:
        raise InterpError("a png is drawn by Chrome or Chromium, which could not be used: none is here")

    monkeypatch.setattr(exporting, "figure", broken)
    app = opened("rank")
    app.switch_page("screens/export.py").run()
    assert "could not be used" in sentences(app)
    assert len(app.get("download_button")) == 4, "code, data and report do not need it"


PAGES = [("channels", "channel_imbalance"), ("rank", "attention_rank"), ("sinks", "text_sinks")]


@pytest.mark.parametrize(("screen", "probe"), PAGES)
def test_exported_code_draws_what_the_page_shows(screen, probe):
    app = opened(screen, layer="1", head="2", kv_head="1")
    view = app.session_state["view"]
    assert set(view.figures) == set(figures.figures_of(probe)), "all that the library draws of it"
    wanted = [figure.layout.title.text for figure in view.figures.values()]
    found = run_code(app)
    assert [figure.layout.title.text for figure in found] == wanted


def test_exported_code_writes_the_same_texts():
    app = opened("intervene", **{"with": "knorm"})
    (wanted,) = app.session_state["view"].figures.values()
    (found,) = run_code(app)
    assert [bar.text for bar in found.data] == [bar.text for bar in wanted.data]
