"""What an edit does to where a token looks: both sides on one scale, and the difference."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import xarray as xr

import interp
from interp.figures._need import FigureError
from tests.lens.test_images import seeing
from tests.vision_models import picture

NAME = "image_attention"


@cache
def sides(kind: str = "llava") -> tuple[xr.Dataset, xr.Dataset]:
    lens, texts = seeing(kind), ("w1 <image> w2 w3", NAME)
    before = interp.probe(lens, *texts, images=picture(0, 96, 64))[NAME]
    with lens.apply(interp.Temperature(temperature=0.3)):
        return before, interp.probe(lens, *texts, images=picture(0, 96, 64))[NAME]


def example() -> xr.Dataset:
    """What figures of `before_after` draw."""
    return interp.before_after(*sides())


def test_one_scale_and_the_difference():
    before, after = (side.copy(deep=True) for side in sides())
    tokens = np.flatnonzero(before.modality.values == "image")
    before.attention.values[:], after.attention.values[:] = 0.01, 0.01
    before.attention.values[..., tokens[4]] = 0.1
    after.attention.values[..., tokens[4]] = 0.02
    after.attention.values[..., tokens[7]] = 0.05
    figure = interp.figures.image_attention_change(interp.before_after(before, after), layer=1)
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    was, now, change = (np.ravel(heat.z) for heat in heats)
    assert [heat.coloraxis for heat in heats] == ["coloraxis", "coloraxis", "coloraxis2"]
    assert was[4] == pytest.approx(10, rel=0.05), "per cent of the row's attention"
    np.testing.assert_allclose(change, now - was, atol=1e-5)
    assert change.argmin() == 4
    assert change.argmax() == 7
    assert figure.layout.coloraxis2.cmin == -figure.layout.coloraxis2.cmax == pytest.approx(change.min())
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["before: 25.0 % on the picture", "after: 21.0 %", "change: -4.0 points"]
    assert figure.layout.title.text.startswith("Where token ")
    assert "before and after temperature, layer 1" in figure.layout.title.text


def test_parts_and_whole_have_a_row_each():
    figure = interp.figures.image_attention_change(interp.before_after(*sides("idefics3")))
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(heats) == 6
    assert len(figure.layout.images) == 6
    with pytest.raises(FigureError, match="layer 9 is not in this result"):
        interp.figures.image_attention_change(interp.before_after(*sides("idefics3")), layer=9)


@pytest.mark.parametrize("told", ["[[", "7", '[{"no": "name"}]', '[{"name": "<b>x</b>"}]'])
def test_an_edits_name_is_only_a_word(told):
    both = example().assign_attrs(after=told)
    title = interp.figures.image_attention_change(both).layout.title.text
    assert "<b>" not in title
    assert "before and after an edit" in title or "&lt;b&gt;x" in title
