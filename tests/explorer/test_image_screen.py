"""The page Image on a tiny model: what it shows is what the library says, and what goes wrong is a sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from streamlit.testing.v1 import AppTest

import interp
from interp.errors import InterpError
from interp.subjects.emoji.examples import EXAMPLES, example_picture
from interp_explorer import looking, patches
from tests.explorer.opening import charts, collected_figures, opened, sentences
from tests.vision_models import built, picture

pytestmark = pytest.mark.timeout(600)
ASKED = {"question": "w3 w5 w7", "new_tokens": "4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    model, processor = built("llava")
    processor.save_pretrained(path)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lens(folder):
    return interp.load(str(folder))


@pytest.fixture
def image_page(folder):
    return lambda **address: opened("image", **{"model": str(folder), **ASKED, **address})


def titles(app: AppTest) -> list[str]:
    return [chart["layout"]["title"]["text"] for chart in charts(app)]


def seen(lens, **settings):
    """What the page should have measured of its first picture."""
    image = example_picture(next(iter(EXAMPLES)))
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED["question"]}]}]
    answer = lens.generate(said, 4, images=image)
    said.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    probe = interp.ImageAttention(rows=looking.ROWS, **settings)
    return answer, interp.probe(lens, said, probe, images=image)["image_attention"]


def test_answer_and_attention_are_the_librarys(image_page, lens):
    app = image_page()
    assert "No channel of this model's residual stream stands out" in sentences(app)
    assert not app.error
    answer, wanted = seen(lens)
    assert app.code[0].value == answer
    shown = app.session_state["view"].data["image_attention"]
    np.testing.assert_allclose(shown["attention"], wanted["attention"], atol=1e-6)
    words = [str(text).strip() for text in shown["query_text"].values]
    assert [word for word in words if word in ASKED["question"].split()] == ASKED["question"].split()
    assert words[-len(answer.split()) :] == answer.split(), "the answer's words look, too"
    bars = charts(app)[0]["data"][0]
    share = wanted["attention"].mean("layer").values[:, wanted["modality"].values == "image"].sum(1)
    assert [row[1] for row in bars["customdata"]] == [f"{value:.1%}" for value in share]


def test_layer_head_word_and_patches_choose_what_is_drawn(image_page, lens):
    _, wanted = seen(lens, head=1)
    image = np.flatnonzero(wanted["modality"].values == "image")
    word, (first, second) = int(wanted["query"].values[1]), image[[4, 5]]
    app = image_page(layer="2", head="1", word=str(word), patches=f"{first}-{second}")
    text = str(wanted["query_text"].sel(query=word).values).strip()
    assert titles(app)[1].startswith(f"Where token {word} ")
    assert text in titles(app)[1]
    assert titles(app)[1].endswith("layer 2, head 1")
    assert titles(app)[2:4] == ["Which tokens look at 2 patches, layer 2, head 1", "Which heads look at 2 patches"]
    given = wanted["attention"].sel(layer=2, token=[first, second]).sum("token")
    view = app.session_state["view"]
    np.testing.assert_allclose(view.figures["patch_words"].data[0].y, 100 * given, rtol=1e-4)
    hit = next(trace for trace in charts(app)[1]["data"] if trace.get("mode") == "markers")
    assert len(hit["text"]) == len(image), "a point to click on in every patch"
    framed = {(shape["xref"], shape["x0"], shape["y0"]) for shape in charts(app)[1]["layout"]["shapes"]}
    assert len(framed) == 4, "two patches on the picture, and two on its attention"
    app.text_input(key="patches").set_value("").run()
    assert titles(app)[3] == "Which heads look at the image"


def test_what_is_chosen_of_another_question_falls_back(image_page):
    app = image_page(word="99999", layer="77", head="x", patches="0", change="no such", channels_from="?")
    assert not app.exception, [e.value for e in app.exception]
    assert "token 0 is no part of the image, whose tokens lie from" in sentences(app)
    assert "mean of 3 layers" in titles(app)[1]


@pytest.mark.parametrize("line", ["one", "5-", "9-5", "1-99999999", "-3", "17..20"])
def test_what_names_no_patch_is_a_sentence(image_page, line):
    with pytest.raises(InterpError):
        patches.read(line)
    assert any(said in sentences(image_page(patches=line)) for said in ("names no patch", "is no range of patches"))


@settings(deadline=None)
@given(st.sets(st.integers(0, 300)))
def test_patches_are_written_as_they_are_read(positions):
    assert patches.read(patches.written(sorted(positions))) == sorted(positions)


def test_both_answers_are_the_librarys(image_page, lens):
    _, wanted = seen(lens)
    image = np.flatnonzero(wanted["modality"].values == "image")
    app = image_page(change="chosen patches", generate="true")
    assert "Choose patches first" in sentences(app)
    app = image_page(change="chosen patches", generate="true", patches=patches.written(image[:8].tolist()))
    assert sentences(app) == ""
    shown = app.session_state["view"].data["side_by_side"]
    edit = interp.KnockOut(keys=tuple(image[:8].tolist()))
    both = interp.side_by_side(
        lens, ASKED["question"], edit, 4, chat=True, images=example_picture(next(iter(EXAMPLES)))
    )
    np.testing.assert_array_equal(shown["token_id"], both["token_id"])
    np.testing.assert_allclose(shown["shift"], both["shift"], atol=1e-5)
    assert (np.abs(both["shift"]) > 1e-3).any()
    assert [code.value for code in app.code[1:]] == ["".join(side) for side in both["token_text"].values]
    assert titles(app)[-1].startswith("Where token ")
    assert "before and after knock_out" in titles(app)[-1]


def test_var_moves_attention_by_the_channels_and_the_threshold_of_the_section_above(image_page):
    app = image_page(channels_from="typed", channels="3, 7", tau_rel="0.1", generate="true", remove_fraction="0.9",
                     min_visual_mass="0.0", min_nonsink_ratio="0.05")  # fmt: skip
    assert "var" not in sentences(app), "it changed something, or a note would say that it did not"
    (made,) = json.loads(app.session_state["view"].data["side_by_side"].attrs["interventions"])
    assert made["name"] == "var"
    assert made["channels"] == [3, 7]
    wanted = {"tau_rel": 0.1, "remove_fraction": 0.9, "min_visual_mass": 0.0, "min_nonsink_ratio": 0.05}
    assert {name: made[name] for name in wanted} == wanted
    assert app.session_state["view"].data["visual_sinks"].attrs["tau"] == pytest.approx(0.1 * 8)
    app.segmented_control(key="change").set_value("sinks").run()
    (made,) = json.loads(app.session_state["view"].data["side_by_side"].attrs["interventions"])
    assert (made["name"], made["group"]) == ("group_knock_out", "visual_sinks")


def test_the_threshold_that_attention_agrees_with_is_offered_and_taken(image_page, lens):
    app = image_page(channels_from="typed", channels="3")
    image = example_picture(next(iter(EXAMPLES)))
    share = interp.sink_threshold(lens, (3,), f"<image> {ASKED['question']}", images=image).attrs["tau_rel"]
    if not np.isfinite(share):
        assert not [button for button in app.button if button.key == "agreed"]
        return
    app.button(key="agreed").click().run()
    assert app.slider(key="tau_rel").value == pytest.approx(max(share, 0.05))


def test_a_channel_that_the_model_lacks_is_a_sentence(image_page):
    assert "has channels 0 to 63, found 64" in sentences(image_page(channels_from="typed", channels="64"))


def test_a_model_without_eyes_says_which_one_sees_and_takes_it():
    app = opened("image", new_tokens="4")
    assert sentences(app) == "demo reads text and sees nothing; emoji-vlm, which is here, sees pictures."
    assert not charts(app)
    app.button(key="take").click().run()
    assert app.text_input(key="model").value == "emoji-vlm"
    assert sentences(app) == ""
    assert app.code[0].value


def test_an_empty_question_is_a_sentence(image_page):
    assert "The question is empty" in sentences(image_page(question=" "))


def png(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **how)
    return held.getvalue()


def test_an_upload_is_read_and_stays_for_its_address(image_page, lens):
    app = image_page(picture="upload")
    assert "Upload a picture, or choose another one." in sentences(app)
    given = picture(3, 80, 50)
    app.file_uploader(key="picture upload").upload("a_b.png", png(given), "image/png").run()
    assert any("a\\_b\\.png, 80 x 50 pixels" in caption.value for caption in app.caption)
    shown = app.session_state["view"].data["image_attention"]
    wanted = interp.probe(lens, _talk(app), "image_attention", images=given)
    np.testing.assert_allclose(shown["attention"].values[:, -1], wanted["image_attention"]["attention"].values[:, -1])
    again = image_page(picture="upload", upload=str(app.query_params["upload"]))
    assert titles(again) == titles(app)
    assert "no longer here" in sentences(image_page(picture="upload", upload="0123456789abcdef"))


def _talk(app: AppTest):
    """The text that the page's own Python reads."""
    line = next(code for code in app.session_state["view"].code if code.startswith("text = "))
    return eval(line.removeprefix("text = "))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no picture", "x.png is no image that can be read; save it as PNG or JPEG"),
        (png(picture())[:400], "x.png cannot be read"),
        (png(picture(), "GIF", save_all=True, append_images=[picture(1)]), "x.png is an animation of 2 frames"),
        (png(Image.new("L", (9000, 6000))), "x.png has 9000 x 6000 pixels"),
        (b"", "x.png is no image that can be read"),
    ],
)
def test_what_is_no_picture_is_a_sentence(image_page, content, said):
    app = image_page(picture="upload")
    app.file_uploader(key="picture upload").upload("x.png", content, "image/png").run()
    assert said in sentences(app)
    assert not charts(app)


def test_few_uploads_are_kept(image_page):
    app = image_page(picture="upload")
    names = []
    from interp_explorer import pictures

    for seed in range(pictures.SHELF + 1):
        app.file_uploader(key="picture upload").upload(f"{seed}.png", png(picture(seed)), "image/png").run()
        names.append(str(app.query_params["upload"]))
    assert "no longer here" in sentences(image_page(picture="upload", upload=names[0]))
    assert not image_page(picture="upload", upload=names[1]).error


@pytest.mark.parametrize("key", ["new_tokens", "tau_rel", "remove_fraction"])
def test_a_number_that_no_widget_can_hold_is_a_sentence(image_page, key):
    app = image_page(**{key: "1e400", "channels_from": "typed", "channels": "3"})
    assert f"The address says {key}=1e400" in sentences(app)


def test_other_probes_of_images_are_offered_and_drawn(image_page):
    from interp import figures, probes

    app = image_page()
    offered = app.multiselect(key="more").options
    assert {*offered, "image_attention", "visual_sinks"} == set(probes.available("images"))
    app.multiselect(key="more").set_value(offered).run()
    assert not app.error, [e.value for e in app.error]
    assert not app.exception, [e.value for e in app.exception]
    for name in offered:
        assert set(figures.figures_of(name)) <= set(app.session_state["view"].figures)


def test_exported_code_draws_what_the_page_shows(image_page):
    chosen = {"channels_from": "typed", "channels": "3", "tau_rel": "0.3", "layer": "1", "patches": "8"}
    app = image_page(**chosen, generate="true", change="all of the image")
    wanted = {figure.layout.title.text for figure in app.session_state["view"].figures.values()}
    app.switch_page("screens/export.py").run()
    with collected_figures() as drawn:
        exec(compile(app.code[0].value, "view.py", "exec"), {})
    assert {figure.layout.title.text for figure in drawn} == wanted
    labels = [button.proto.label for button in app.get("download_button")]
    assert "HTML report" in labels


def test_a_model_without_a_chat_template_is_asked_in_plain_text(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    app = opened("image", model=str(tmp_path / "plain"), **ASKED)
    assert not app.error, [e.value for e in app.error]
    assert not [toggle for toggle in app.toggle if toggle.key == "chat_template"]
    assert _talk(app).startswith("<image> w3 w5 w7")
