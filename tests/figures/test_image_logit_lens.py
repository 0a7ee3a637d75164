"""Words over the picture, each at its place, letter by letter."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import interp
from interp.figures._need import FigureError
from tests.lens.test_images import seeing
from tests.vision_models import picture

NAME = "image_logit_lens"


@pytest.fixture
def result() -> xr.Dataset:
    return interp.probe(seeing("llava"), "w1 <image> w2", NAME, images=picture(0, 96, 64))[NAME].copy(deep=True)


def parts(figure):
    (heat,) = [trace for trace in figure.data if trace.type == "heatmap"]
    (words,) = [
        trace for trace in figure.data if trace.type == "scatter" and trace.mode == "text"
    ]  # fmt: skip
    return heat, words


def test_each_word_stands_in_its_token(result):
    image = np.flatnonzero(result.modality.values == "image")
    result.word.values[2, image[9], 0] = " heron"
    result.probability.values[:] = 0.1
    result.probability.values[2, image[9], 0] = 0.7
    heat, words = parts(interp.figures.image_logit_lens(result))
    at = list(words.text).index("heron")
    left, top, right, bottom = result.box.values[image[9]]
    assert left < words.x[at] < right
    assert top < words.y[at] < bottom
    row, column = np.unravel_index(heat.z.argmax(), heat.z.shape)
    assert heat.z[row, column] == pytest.approx(0.7)
    assert heat.customdata[row, column] == image[9]
    assert heat.text[row, column].startswith("“ heron” 70.0%, ")
    assert heat.text[row, column].count("<br>") == result.sizes["rank"] - 1


def test_words_are_shown_letter_by_letter_and_cut_to_their_cell(result):
    result.word.values[:] = "<b>$x$</b>\u202e" + 40 * "y"
    heat, words = parts(interp.figures.image_logit_lens(result, layer=1))
    for text in (*words.text, *np.ravel(heat.text)):
        assert "<b>" not in text
        assert "$" not in text
        assert "\u202e" not in text
    assert all(len(text) < 60 for text in words.text)


def test_tokens_too_small_for_letters_have_none(result):
    far = interp.figures.image_logit_lens(result, picture=picture(0, 900, 600))  # boxes are those of 96 x 64 pixels
    heat, words = parts(far)
    assert not words.text
    assert "%" in heat.text[0, 0]


def test_the_last_layer_unless_another_is_chosen(result):
    assert interp.figures.image_logit_lens(result).layout.title.text.endswith("after layer 2")
    with pytest.raises(FigureError, match="layer 3 is not in this result"):
        interp.figures.image_logit_lens(result, layer=3)
