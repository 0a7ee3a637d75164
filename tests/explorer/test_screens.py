"""Every page without a browser: what it shows for the demo model, and a sentence for everything that can go wrong."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from tests.explorer.opening import TOKENS, charts, opened, sentences

SCREENS = ["channels", "rank", "sinks", "image", "in_context", "intervene", "studies", "export"]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def overview() -> AppTest:
    return opened()


def test_the_first_screen_tells_every_probes_findings(overview):
    from interp.probes import resolve
    from interp_explorer.text import plain

    assert sentences(overview) == ""
    said = " ".join(element.value for element in overview.markdown)
    import interp

    lens = interp.load("demo")
    results = interp.probe(lens, interp.subjects.demo_text(), resolve(None), tokens=int(TOKENS))
    for probe in resolve(None):
        for sentence in probe.findings(results[probe.name]):
            assert plain(sentence) in said


@pytest.mark.parametrize("screen", SCREENS)
def test_every_screen_opens(screen):
    app = opened(screen)
    assert not app.exception, [e.value for e in app.exception]
    assert not app.error, [e.value for e in app.error]
    assert app.title


def test_a_chosen_head_is_chosen_on_every_page():
    app = opened("rank")
    maps, spectra = charts(app)
    targets = [trace for trace in maps["data"] if trace.get("mode") == "markers"]
    assert len(targets) == 2, "one set of invisible points, which can be clicked, for each of the two maps"
    assert "layer" not in spectra["layout"]["title"]["text"]
    app.selectbox(key="layer").set_value("3").run()
    app.selectbox(key="head").set_value("2").run()
    assert charts(app)[1]["layout"]["title"]["text"].endswith("and layer 3 head 2")
    app.switch_page("screens/sinks.py").run()
    assert "layer 3, head 2" in charts(app)[1]["layout"]["title"]["text"]


def test_the_slider_of_epsilon_counts_heads():
    import interp

    app = opened("sinks")
    result = interp.probe(interp.load("demo"), interp.subjects.demo_text(), "text_sinks", tokens=int(TOKENS))
    alpha = result["text_sinks"]["alpha_first"]
    for epsilon in (0.3, 0.6):
        app.slider(key="epsilon").set_value(epsilon).run()
        assert app.metric[0].value == f"{100 * float((alpha > epsilon).mean()):.1f} % of heads"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ({"text": "typed"}, "the text is empty"),
        ({"text": "typed", "typed": "  \n "}, "the text is empty"),
        ({"text": "file"}, "upload a file"),
        ({"text": "typed", "shelf": "0123456789abcdef"}, "no longer here"),
        ({"tokens": "100000"}, "exceed the context of 8192"),
        ({"model": "/no/such/folder"}, "cannot load"),
        ({"model": "nobody/nothing"}, "cannot load"),
        ({"text": "typed", "typed": "x", "tokens": "2"}, ""),
    ],
)
@pytest.mark.parametrize("screen", [None, "channels", "intervene"])
def test_what_cannot_be_read_is_a_sentence(screen, address, said):
    words = sentences(opened(screen, **address))
    assert said in words


def test_a_model_that_would_not_fit_is_refused(monkeypatch, tmp_path):
    import psutil

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0" * 4096)
    little = type("Memory", (), {"available": 1024})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    assert "free here" in sentences(opened(model=str(tmp_path)))


def test_reading_that_would_not_fit_is_refused(monkeypatch, overview):
    import psutil

    little = type("Memory", (), {"available": 1024})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    assert "choose fewer tokens" in sentences(opened())


def test_an_upload_that_is_not_text_is_a_sentence():
    app = opened(text="file")
    app.file_uploader(key="upload").upload("bad.txt", b"\xff\xfe\x00", "text/plain").run()
    assert "is not UTF-8 text" in sentences(app)
