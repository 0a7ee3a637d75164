"""Every page without a browser: what it shows for the demo model, and a sentence for everything that can go wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from tests.chromium import CHROMIUM
from tests.explorer.opening import TOKENS, charts, opened, sentences

WITH_TEXT = ["channels", "rank", "sinks", "intervene"]
WITH_MODEL = [*WITH_TEXT, "in_context"]
SCREENS = [*WITH_MODEL, "image", "studies", "export"]

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
    assert app.title
    errors = [e.value for e in app.error]
    if screen == "export" and CHROMIUM is None:  # the picture of the figure that it offers at first
        (sentence,) = errors
        assert "is drawn by Chrome or Chromium, which could not be used" in sentence.replace("\\", "")
    else:
        assert not errors


def test_a_chosen_head_is_chosen_on_every_page():
    app = opened("rank")
    maps, spectra, *_ = charts(app)
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
        rates = app.session_state["view"].figures["sink_rate"].data[0].y
        np.testing.assert_allclose(rates, 100 * (alpha > epsilon).mean("head"), rtol=1e-6)


def test_only_the_figure_that_changes_is_made_anew():
    app = opened("sinks")
    first = app.session_state["view"].figures
    app.slider(key="epsilon").set_value(0.6).run()
    second = app.session_state["view"].figures
    assert [name for name in first if second[name] is not first[name]] == ["sink_rate"]
    app.number_input(key="tokens").set_value(40).run()
    third = app.session_state["view"].figures
    assert [name for name in second if third[name] is second[name]] == []


NOTHING = [
    ({"text": "typed"}, "the text is empty"),
    ({"text": "typed", "typed": "  \n "}, "the text is empty"),
    ({"text": "file"}, "upload a file"),
    ({"text": "typed", "shelf": "0123456789abcdef"}, "no longer here"),
    ({"model": "/no/such/folder"}, "cannot load"),
    ({"model": "nobody/nothing"}, "cannot load"),
]


@pytest.mark.parametrize(("address", "said"), NOTHING)
@pytest.mark.parametrize("screen", [None, *WITH_MODEL])
def test_what_cannot_be_read_is_a_sentence(screen, address, said):
    assert said in sentences(opened(screen, **address))


@pytest.mark.parametrize("screen", [None, *WITH_TEXT])
def test_a_text_of_too_many_tokens_is_a_sentence(screen):
    assert "exceed the context of 8192" in sentences(opened(screen, tokens="100000"))


@pytest.mark.parametrize("screen", [None, "channels", "rank", "sinks"])
def test_a_text_of_one_letter_is_read(screen):
    assert sentences(opened(screen, text="typed", typed="x", tokens="2")) == ""


@pytest.mark.parametrize("screen", [None, *WITH_MODEL])
def test_a_file_that_is_no_text_or_too_long_is_a_sentence(screen):
    app = opened(screen, text="file")
    app.file_uploader(key="upload").upload("bad.txt", b"\xff\xfe\x00", "text/plain").run()
    assert "bad.txt is not UTF-8 text" in sentences(app)
    app.file_uploader(key="upload").upload("long.txt", b"a" * 2_000_001, "text/plain").run()
    assert "the text has 2,000,001 characters; at most 2,000,000 are taken" in sentences(app)


@pytest.mark.parametrize("screen", [None, *WITH_MODEL])
def test_a_model_without_weights_is_a_sentence(screen, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    assert "cannot load" in sentences(opened(screen, model=str(tmp_path)))


@pytest.fixture
def little_memory(monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1024})())


@pytest.mark.parametrize("screen", [None, *WITH_MODEL])
def test_a_model_that_would_not_fit_is_refused(screen, little_memory, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0" * 4096)
    assert "are free here: load it on a larger machine" in sentences(opened(screen, model=str(tmp_path)))


@pytest.mark.parametrize("screen", [None, *WITH_TEXT])
def test_reading_that_would_not_fit_is_refused(screen, overview, little_memory):
    assert "choose fewer tokens" in sentences(opened(screen))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    own = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": own}))
    assert "cannot load" in sentences(opened(model=str(tmp_path)))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("screen", "address"),
    [
        (None, {"tokens": "many", "text": "none", "dtype": "int3"}),
        ("channels", {"layer": "99", "kv_head": "-1"}),
        ("rank", {"layer": "five", "head": "77"}),
        ("sinks", {"layer": "99", "head": "x", "token": "100000", "epsilon": "7"}),
        ("in_context", {"study": "no-such-study", "heads": "perhaps"}),
        ("intervene", {"with": ["no_such_method"], "chat": "perhaps"}),
        ("studies", {"file": "no-such-file"}),
    ],
)
def test_an_address_that_makes_no_sense_opens_what_does(screen, address):
    app = opened(screen, **address)
    assert not app.exception, [e.value for e in app.exception]
    assert not app.error, [e.value for e in app.error]


def test_the_chosen_token_stays_within_a_shorter_text():
    app = opened("sinks", token="40")
    assert "token 40 " in charts(app)[2]["layout"]["title"]["text"]
    app.number_input(key="tokens").set_value(16).run()
    assert not app.exception
    assert "token 0 " in charts(app)[2]["layout"]["title"]["text"]


def test_a_token_that_hardly_anybody_sees_has_a_sentence_and_no_empty_chart():
    app = opened("sinks", token=str(int(TOKENS) - 1))
    assert "seen by too few queries" in sentences(app)
    from interp import figures

    assert len(charts(app)) == len(figures.figures_of("text_sinks")) - 1


@pytest.mark.parametrize(("screen", "probe"), [("channels", "channel_imbalance"), ("rank", "attention_rank")])
def test_a_new_figure_of_a_page_needs_no_word_on_it(screen, probe, monkeypatch):
    import plotly.graph_objects as go

    from interp import figures

    def depth(ds):
        return go.Figure(go.Bar(y=[ds.sizes["layer"]])).update_layout(title_text="how many layers")

    own, find = list(figures.figures_of(probe)), figures.figures_of
    more = lambda name: find(name) | ({"depth": depth} if name == probe else {})  # noqa: E731
    monkeypatch.setattr(figures, "figures_of", more)
    app = opened(screen)
    assert list(app.session_state["view"].figures) == [*own, "depth"]
    assert charts(app)[-1]["layout"]["title"]["text"] == "how many layers"
    assert f"interp.figures.depth(results[{probe!r}]).show()" in app.session_state["view"].code
