"""The page Image as people use it: a picture is uploaded, a word and a patch are clicked, and the answer is changed."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

import interp
from interp.subjects.emoji.scenes import make_scene
from tests.explorer.browsing import numbers

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
QUESTION = "What is there at the top left?"
PICTURE, ATTENTION = 0, 1
"""Panels of the chart of the picture."""


def click_in_picture(tab, x: float, y: float, panel: int) -> None:
    """Click into the picture, at pixels of its own; the chart is the second of the page."""
    at = """([x, y, panel]) => {
        const p = document.querySelectorAll('.js-plotly-plot')[1], l = p._fullLayout
        p.scrollIntoView({block: 'center'})
        const box = p.getBoundingClientRect(), across = panel ? l.xaxis2 : l.xaxis, down = panel ? l.yaxis2 : l.yaxis
        return [box.left + across._offset + across.d2p(x), box.top + down._offset + down.d2p(y)]
    }"""
    place = tab.page.evaluate(at, [x, y, panel])
    tab.page.mouse.move(*place)
    tab.page.wait_for_selector(".hoverlayer .hovertext:has-text('of its attention')")
    tab.page.mouse.click(*place)


def test_an_upload_is_asked_about_and_words_and_patches_are_clicked(tab):
    scene = make_scene(3, held_out=True)
    held = io.BytesIO()
    scene.picture().save(held, "PNG")
    tab.open("image", model="emoji-vlm", picture="upload", question=QUESTION, new_tokens=6)
    file = {"name": "<b>mine</b>.png", "mimeType": "image/png", "buffer": held.getvalue()}
    tab.page.locator("[data-testid=stMain] input[type=file]").set_input_files(file)
    tab.page.wait_for_function("location.search.includes('upload=')", timeout=60_000)
    tab.settle()
    assert "<b>mine</b>.png, 112 x 112 pixels" in tab.text()
    lens = interp.load("emoji-vlm")
    answer = lens.generate(QUESTION, 6, images=scene.picture(), chat=True)
    assert tab.page.locator("[data-testid=stCode]").first.inner_text().strip() == answer

    words = next(trace for trace in tab.chart(0)["data"] if trace["type"] == "bar")
    number = next(i for i, text in enumerate(words["text"]) if "left" in text)
    position = words["customdata"][number][0]
    across = numbers(words["base"])[number] + numbers(words["x"])[number] / 2
    tab.click_on_chart(across, float(numbers(words["y"])[number]), 0)
    tab.page.wait_for_function(f"location.search.includes('word={position}')")
    tab.settle()
    title = tab.chart(1)["layout"]["title"]["text"]
    assert title.startswith(f"Where token {position} ")
    assert "left" in title

    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    result = interp.probe(lens, talk, interp.ImageAttention(rows=96), images=scene.picture())["image_attention"]
    image = np.flatnonzero(result["modality"].values == "image")
    for panel, (column, row) in ((PICTURE, (0, 0)), (ATTENTION, (5, 2))):
        click_in_picture(tab, 16 * column + 1, 16 * row + 14, panel)  # not its middle
        token = int(image[7 * row + column])
        tab.page.wait_for_function(f"location.search.includes('patches={token}')")
        tab.settle()
        bars = tab.chart(2)
        assert f"look at patch {token}," in bars["layout"]["title"]["text"]
        wanted = 100 * result["attention"].sel(token=token).mean("layer")
        np.testing.assert_allclose(numbers(bars["data"][0]["y"]), wanted, rtol=1e-3)

    tab.page.get_by_role("radio", name="all of the image").click()
    tab.settle()
    tab.page.locator("[class*=st-key-generate] label").click()
    tab.settle()
    edit = interp.KnockOut(keys="images")
    both = interp.side_by_side(lens, QUESTION, edit, 6, chat=True, images=scene.picture())
    said = [code.strip() for code in tab.page.locator("[data-testid=stCode]").all_inner_texts()]
    assert said[1:] == ["".join(side).strip() for side in both["token_text"].values]
    assert said[1] != said[2], "without the image the model says something else"
    assert "change:" in json.dumps(tab.chart(tab.page.locator(".js-plotly-plot").count() - 1)["layout"])
    inner, outer = tab.page.evaluate(
        "() => { const m = document.querySelector('[data-testid=stMain]'); return [m.scrollWidth, m.clientWidth] }"
    )
    assert inner <= outer, "no sideways scrolling at 1,280 pixels"
    assert tab.elsewhere() == []
    tab.page.reload()
    tab.settle()
    assert f"look at patch {token}," in tab.chart(2)["layout"]["title"]["text"], "a reload keeps the view"


def test_a_box_takes_several_patches(tab):
    tab.open("image", model="emoji-vlm")
    tab.chart(1)
    chart = tab.page.locator(".js-plotly-plot").nth(1)
    chart.scroll_into_view_if_needed()
    chart.hover()
    chart.locator(".modebar-btn[data-title='Box Select']").click()
    corners = tab.page.evaluate(
        "() => { const p = document.querySelectorAll('.js-plotly-plot')[1], l = p._fullLayout;"
        "p.scrollIntoView({block: 'center'}); const box = p.getBoundingClientRect();"
        "return [1, 40].flatMap(n => [box.left + l.xaxis2._offset + l.xaxis2.d2p(n),"
        "box.top + l.yaxis2._offset + l.yaxis2.d2p(n)]) }"
    )
    tab.page.mouse.move(*corners[:2])
    tab.page.mouse.down()
    tab.page.mouse.move(*corners[2:], steps=5)
    tab.page.mouse.up()
    tab.page.wait_for_function("location.search.includes('patches=')")
    tab.settle()
    assert "Which tokens look at 4 patches" in tab.chart(2)["layout"]["title"]["text"]
