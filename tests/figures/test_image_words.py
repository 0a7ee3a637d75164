"""The words behind an image, and who looks at a part of it: the numbers that the figures show."""

from __future__ import annotations

import numpy as np
import pytest

import interp
from interp.figures._need import FigureError
from tests.examples import run


@pytest.fixture(scope="module")
def result():
    return run("image_attention")


@pytest.fixture(scope="module")
def image(result) -> np.ndarray:
    return np.flatnonzero(result["modality"].values == "image")


def test_a_words_ground_is_as_dark_as_what_it_gives_to_the_image(result, image):
    strong = result.copy(deep=True)
    strong["attention"][:] = 0
    strong["attention"][1, 0, image[:4]] = 0.25
    for layer, wanted in ((None, 1 / strong.sizes["layer"]), (1, 1.0)):
        bars, _ = interp.figures.image_words(strong, layer=layer).data
        assert [row[1] for row in bars.customdata] == [f"{wanted:.1%}", *["0.0%"] * (len(bars.text) - 1)]
        assert bars.marker.color[0] != bars.marker.color[1]


def test_the_chosen_word_is_framed(result):
    queries = result["query"].values
    bars = interp.figures.image_words(result, query=int(queries[1])).data[0]
    assert np.flatnonzero(bars.marker.line.width).tolist() == [1]
    assert not np.any(interp.figures.image_words(result).data[0].marker.line.width)
    with pytest.raises(FigureError, match="query 0 is not in this result"):
        interp.figures.image_words(result, query=0)


def test_a_bar_is_what_a_token_gives_to_the_patches(result, image):
    some = image[[2, 5]].tolist()
    given = 100 * result["attention"].sel(token=some).sum("token")
    for layer in (None, 2):
        wanted = given.mean("layer") if layer is None else given.sel(layer=layer)
        (bar,) = interp.figures.patch_words(result, some, layer).data
        np.testing.assert_allclose(bar.y, wanted, rtol=1e-5)
        assert bar.x.tolist() == result["query"].values.tolist()


def test_a_cell_is_what_a_head_gives_to_the_patches(result, image):
    (heat,) = interp.figures.patch_heads(result, image[[3]]).data
    np.testing.assert_allclose(heat.z, 100 * result["received"].sel(token=image[3]), rtol=1e-5)
    whole = interp.figures.patch_heads(result)
    np.testing.assert_allclose(whole.data[0].z, 100 * result["received"].sel(token=image).sum("token"), rtol=1e-4)
    assert whole.layout.title.text == "Which heads look at the image"


@pytest.mark.parametrize("draw", [interp.figures.patch_words, interp.figures.patch_heads])
def test_what_is_no_part_of_an_image_is_a_sentence(draw, result):
    with pytest.raises(FigureError, match=r"token 0 is no part of an image; those of this text lie from \d+ to \d+"):
        draw(result, [0])
    with pytest.raises(FigureError, match="patches is empty"):
        draw(result, [])
    with pytest.raises(FigureError, match="there is none"):
        draw(result.assign_coords(modality=("token", ["text"] * result.sizes["token"])), [0])
