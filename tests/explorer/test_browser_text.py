"""Text of strangers in a real browser: every letter of it is shown, and nothing of it is followed."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

HOSTILE = [
    "<script>window.taken = 1</script>",
    "<img src=http://evil.example/a.png onerror=window.taken=1>",
    "![picture](http://evil.example/b.png)",
    "[link](http://evil.example) www.evil.example http://evil.example me@evil.example",
    "**bold** _slanted_ ~~gone~~ `code` # title",
    "costs $x^2$ and $$y$$",
    ":smile: :material/home: :streamlit: :red[red] :blue-badge[b] :small[s]",
    "a -> b <- c -- d >= e <= f ~= g <-> h",
    "&lt;b&gt; &amp; \\* 1. | a | b |",
]


def assert_harmless(tab) -> None:
    assert not tab.page.evaluate("window.taken")
    assert not tab.page.locator("[data-testid=stMain] :is(.katex, a[href*=evil], img[src*=evil])").count()
    assert tab.elsewhere() == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_sentence_shows_every_letter(tab, name):
    tab.open("studies", folder=name)
    said = tab.page.locator("[data-testid=stAlert]").inner_text().replace("\u2060", "")
    assert " ".join(said.split()).startswith(f"there is no folder {name};")
    assert_harmless(tab)


def test_the_name_of_a_model_is_shown_letter_by_letter(tab):
    name = "![m](http://evil.example/c.png)`$x$`<b>"
    tab.open(model=name)
    assert name in tab.page.locator("[data-testid=stAlert]").inner_text().replace("\u2060", "")
    assert_harmless(tab)


@pytest.mark.parametrize("screen", ["", "sinks", "intervene"])
def test_a_typed_text_is_text(tab, screen):
    text = " ".join(HOSTILE)
    tab.open(screen, text="typed", typed=text, tokens=200, steps=2)
    assert_harmless(tab)
    if screen == "":
        tab.page.get_by_text("The text as it was read").click()
        tab.page.wait_for_timeout(500)
        assert "<script>window.taken = 1</script>" in tab.text()
    if screen == "sinks":
        words = tab.page.locator(".js-plotly-plot").nth(1).locator("text.bartext").all_text_contents()
        assert "".join("".join(words).split()).startswith("<script>window.taken=1</script><imgsrc=http://evil.example")
