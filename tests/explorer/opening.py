"""The app without a browser, in Streamlit's own test frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import plotly.graph_objects as go
from streamlit.testing.v1 import AppTest

import interp_explorer
from interp_explorer import waiting

APP = Path(interp_explorer.__file__).with_name("app.py")
TOKENS = "48"  # enough for every probe, quick


def opened(screen: str | None = None, *, clicked: bool = True, **address: str | list[str]) -> AppTest:
    """The app at an address, as a link to it opens, for a user who has clicked in this tab before, or has not."""
    app = AppTest.from_file(str(APP), default_timeout=300)
    for name, value in {"tokens": TOKENS, "steps": "4", **address}.items():
        app.query_params[name] = value
    if clicked:
        app.session_state[waiting.CLICKED] = True
    app.run()
    return app if screen is None else app.switch_page(f"screens/{screen}.py").run()


def sentences(app: AppTest) -> str:
    """What the page says in boxes; fails on a traceback."""
    assert not app.exception, [e.value for e in app.exception]
    said = " ".join(str(element.value) for kind in (app.error, app.info, app.warning) for element in kind)
    return said.replace("\\", "")


def charts(app: AppTest) -> list[dict]:
    """Charts as plotly gets them."""
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


@contextmanager
def collected_figures() -> Iterator[list[go.Figure]]:
    """Figures that `show` is called on, in place of a browser that opens."""
    shown: list[go.Figure] = []
    original, go.Figure.show = go.Figure.show, lambda figure, *_, **__: shown.append(figure)
    try:
        yield shown
    finally:
        go.Figure.show = original
