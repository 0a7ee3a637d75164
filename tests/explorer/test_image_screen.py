"""The page Image: what it waits for, and that a probe that reads images appears on it once the library has one."""

from __future__ import annotations

import io

import plotly.graph_objects as go
import pytest
import xarray as xr
from PIL import Image
from streamlit.testing.v1 import AppTest

import interp
from interp import figures, probes
from tests.explorer.opening import charts, opened, sentences

pytestmark = pytest.mark.timeout(600)


class Patches:
    """A probe as it may be one day: it tells how wide the picture was that it saw."""

    name = "patches"
    reads = "image"

    def findings(self, result: xr.Dataset) -> list[str]:
        return [f"The picture has {int(result['width'])} columns."]

    def __repr__(self) -> str:
        return "Patches()"


def patch_map(ds: xr.Dataset) -> go.Figure:
    return go.Figure(layout_title_text=f"{int(ds['width'])} columns")


@pytest.fixture
def image_probe(monkeypatch):
    """The library with a probe that reads images, and a figure of its result."""
    ask, find, draw = interp.probe, probes.available, figures.figures_of

    def probe(lens, inputs, wanted=None, *, image=None, **options):
        if image is None:
            return ask(lens, inputs, wanted, **options)
        return {"patches": xr.Dataset({"width": image.width})}

    monkeypatch.setattr(interp, "probe", probe)
    monkeypatch.setattr(probes, "available", lambda reads="text": {"patches": Patches} if reads == "image" else find())
    monkeypatch.setattr(
        figures, "figures_of", lambda name: {"patch_map": patch_map} if name == "patches" else draw(name)
    )


def picture(width: int, height: int = 2, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, kind)
    return file.getvalue()


def uploaded(name: str, content: bytes) -> AppTest:
    app = opened("image")
    return app.file_uploader(key="image").upload(name, content, "image/png").run()


def test_without_such_a_probe_it_says_in_a_sentence_what_it_waits_for():
    said = sentences(opened("image"))
    assert "waits for a vision-language model" in said
    assert said.count(".") == 1


def test_a_probe_that_reads_images_appears_without_a_change_to_the_page(image_probe):
    assert "Upload an image" in sentences(opened("image"))
    for kind in ("PNG", "JPEG"):
        app = uploaded(f"a.{kind.lower()}", picture(7, kind=kind))
        assert sentences(app) == ""
        assert any("7 columns" in element.value for element in app.markdown)
        assert charts(app)[0]["layout"]["title"]["text"] == "7 columns"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no picture", "is not a PNG or JPEG picture"),
        (picture(64, 64)[:60], "is not a PNG or JPEG picture"),
        (picture(3, kind="GIF"), "is not a PNG or JPEG picture"),
        (picture(10_000, 2_001), "10,000 × 2,001 pixels; at most 20,000,000"),
    ],
    ids=["text", "cut", "gif", "huge"],
)
def test_a_bad_picture_is_a_sentence(image_probe, content, said):
    assert said in sentences(uploaded("a.png", content))
