"""An address chooses and starts nothing: work that it asks for waits for a click."""

from __future__ import annotations

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from interp_explorer import subject, waiting
from interp_explorer.desk import Desk
from tests.explorer.opening import APP, opened, sentences

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """What the desk is asked to do, which it then does not."""
    names: list[str] = []

    class Idle(Desk):
        def ask(self, key, what, work, who):
            names.append(str(key[0]))
            raise AssertionError(f"begun: {what}")

    st.cache_resource.clear()  # what other tests had done, and clicked
    monkeypatch.setattr(waiting, "Desk", Idle)
    yield names
    st.cache_resource.clear()


LINKS = [
    (None, {"model": "someone/evil"}, "loading someone/evil"),
    (None, {"model": "/tmp/x.gguf", "dtype": "bfloat16"}, "loading /tmp/x.gguf"),
    (None, {"tokens": "8192"}, "loading demo"),
    (None, {"text": "typed", "typed": "x y z"}, "loading demo"),
    ("in_context", {"study": "softmax-regression", "run_study": "true"}, "loading demo"),
    ("intervene", {"with": "knorm", "ask": "true", "steps": "512"}, "loading demo"),
    ("image", {"model": "emoji-vlm", "generate": "true", "question": "x"}, "loading emoji-vlm"),
    ("studies", {"folder": "/"}, "opening the folder /"),
]


@pytest.mark.parametrize(("screen", "address", "asks"), LINKS)
def test_a_link_starts_nothing(begun, screen, address, asks):
    app = opened(screen, clicked=False, **address)
    assert f"This address asks for {asks}." in sentences(app)
    app.run()  # as a browser does when its tab comes back, or a foreign page changes what stands after #
    assert f"This address asks for {asks}." in sentences(app)
    assert begun == []


@pytest.mark.parametrize("screen", ["in_context", "intervene"])
def test_with_the_model_there_a_link_starts_no_work_of_its_page(screen):
    opened()  # the model and the text are ready
    app = opened(screen, clicked=False, heads="true", run_study="true", ask="true", steps="511")
    assert "An address starts nothing by itself." in sentences(app)
    assert not app.get("plotly_chart")


def test_the_button_starts_it():
    app = opened(clicked=False, text="typed", typed="Four owls sit on one wire.")
    assert "An address starts nothing" in sentences(app)
    app.button(key="start").click().run()
    assert sentences(app) == ""
    assert app.title
    app = opened(clicked=False, text="typed", typed="Four owls sit on one wire.")
    assert sentences(app) == "", "what is done already is shown, so that a reload brings the view back"
    assert "An address starts nothing" in sentences(opened(clicked=False, text="typed", typed="Five owls do."))


def test_without_an_address_the_first_screen_is_there_and_the_sidebars_links_start_their_pages(monkeypatch):
    monkeypatch.setattr(subject, "TOKENS", 16)
    app = AppTest.from_file(str(APP), default_timeout=120).run()
    assert sentences(app) == ""
    assert len(app.subheader) > 3, "findings"
    assert waiting.CLICKED not in app.session_state
    app.switch_page("screens/studies.py").run()
    assert app.session_state[waiting.CLICKED]


def test_choosing_in_the_page_is_a_click():
    app = opened(clicked=False, text="typed", typed="Six owls sit on one wire.")
    assert "An address starts nothing" in sentences(app)
    app.text_area(key="typing").set_value("Seven owls sit on one wire.").run()
    assert sentences(app) == ""


def test_a_folder_that_was_opened_by_a_click_is_opened_by_a_reload(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    assert "opening the folder" in sentences(opened("studies", clicked=False, folder=str(tmp_path)))
    assert sentences(opened("studies", folder=str(tmp_path))) == ""
    assert sentences(opened("studies", clicked=False, folder=str(tmp_path))) == ""
