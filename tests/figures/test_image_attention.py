"""The picture with attention over it: each token's at its place, sinks marked and left out of the scale."""

from __future__ import annotations

from functools import cache

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

import interp
from interp.figures._need import FigureError
from tests.lens.test_images import seeing
from tests.vision_models import picture

NAME = "image_attention"


@cache
def probed(kind: str, head: str | None = None) -> dict[str, xr.Dataset]:
    attention = interp.ImageAttention(head=head)
    return interp.probe(seeing(kind), "w1 <image> w2 w3 w2 w4", [attention, "visual_sinks"], images=picture(0, 96, 64))


@pytest.fixture
def result() -> xr.Dataset:
    return probed("llava")[NAME].copy(deep=True)


def heats(figure: go.Figure) -> list[go.Heatmap]:
    return [trace for trace in figure.data if trace.type == "heatmap"]


def test_brightness_is_attention_for_its_share_of_the_picture(result):
    at = np.flatnonzero(result.modality.values == "image")[5]  # second row, second column: 32 to 48, 16 to 32
    result.attention.values[:] = 0.001
    result.attention.values[..., at] = 0.5
    (heat,) = heats(interp.figures.image_attention(result, layer=0))
    row, column = np.unravel_index(heat.z.argmax(), heat.z.shape)
    assert heat.x[column : column + 2] == pytest.approx([32, 48], abs=0.6)
    assert heat.y[row : row + 2] == pytest.approx([16, 32], abs=0.6)
    assert heat.customdata[row, column] == at
    areas = np.diff(heat.y)[:, None] * np.diff(heat.x)
    assert np.average(heat.z, weights=areas) == pytest.approx(1.0, rel=1e-5)


def test_the_token_that_looks_is_named_by_place_or_text(result):
    values = result.attention
    values.values[:] = 0.01
    for number, position in enumerate(result["query"].values):
        values.loc[{"query": position}][..., 3 + number] = 0.9
    drawn = {
        asked: heats(interp.figures.image_attention(result, query=asked))[0].z.argmax()
        for asked in ("w3", "w2", int(result["query"].values[0]))
    }
    queries = result["query"].values.tolist()
    by_place = [heats(interp.figures.image_attention(result, query=q))[0].z.argmax() for q in queries]
    assert drawn["w3"] == by_place[1]
    assert drawn["w2"] == by_place[2], "the last one of that text"
    assert drawn[queries[0]] == by_place[0] != by_place[2]
    with pytest.raises(FigureError, match="no token that looks reads “w33”: the nearest is “w3”"):
        interp.figures.image_attention(result, query="w33")
    with pytest.raises(FigureError, match="there are “w2”"):
        interp.figures.image_attention(result, query="<b>")


def frames(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"]


def test_layers_and_heads_are_chosen_or_averaged():
    result = probed("llava", "each")[NAME]
    query = int(result["query"].values[-1])
    on = np.isfinite(result.box.values[:, 0])

    def drawn(**chosen: int) -> np.ndarray:
        return np.ravel(heats(interp.figures.image_attention(result, **chosen))[0].z)

    rows = result.attention.sel(query=query).values[..., on]
    for chosen, expected in (
        ({}, rows.mean((0, 1))), ({"layer": 1}, rows[1].mean(0)), ({"head": 2}, rows.mean(0)[2]),
        ({"layer": 1, "head": 2}, rows[1, 2]),
    ):  # fmt: skip
        np.testing.assert_allclose(drawn(**chosen), expected / expected.mean(), rtol=0.05)
    assert interp.figures.image_attention(result, layer=1, head=2).layout.title.text.endswith("layer 1, head 2")
    with pytest.raises(FigureError, match="head 9 is not in this result"):
        interp.figures.image_attention(result, head=9)
    with pytest.raises(FigureError, match=r'has the mean over heads alone; probe with .*head="each"'):
        interp.figures.image_attention(probed("llava")[NAME], head=1)


def test_sinks_have_frames_and_do_not_set_the_scale(result):
    sinks = probed("llava")["visual_sinks"].copy(deep=True)
    tokens = np.flatnonzero(result.modality.values == "image")
    sinks.is_sink.values[:] = 0
    sinks.is_sink.loc[{"layer": 1}][tokens[6]] = 1
    result.attention.values[:] = 0.001
    result.attention.values[..., tokens[6]] = 0.9
    result.attention.values[..., tokens[9]] = 0.002
    figure = interp.figures.image_attention(result, layer=1, sinks=sinks)
    (frame,) = frames(figure)
    left, top, right, bottom = result.box.values[tokens[6]]
    assert left < np.nanmin(frame.x) < np.nanmax(frame.x) < right
    assert top < np.nanmin(frame.y) < np.nanmax(frame.y) < bottom
    assert frame.name == "sinks, 1 of 16"
    shown = np.ravel(heats(figure)[0].z)
    assert figure.layout.coloraxis.cmax == pytest.approx(shown[9]), "the brightest token that is no sink"
    assert shown[6] > 100 * figure.layout.coloraxis.cmax
    assert not frames(interp.figures.image_attention(result, layer=0, sinks=sinks))
    assert frames(interp.figures.image_attention(result, sinks=sinks)), "in one of the one layer that has any"


def test_where_every_token_is_a_sink_none_is_marked_and_it_is_said(result):
    sinks = probed("llava")["visual_sinks"].copy(deep=True)
    sinks.is_sink.values[:] = 1
    figure = interp.figures.image_attention(result, sinks=sinks)
    assert not frames(figure)
    assert "all 16 tokens are sinks" in [note.text for note in figure.layout.annotations][-1]
    assert figure.layout.coloraxis.cmax > 0


def test_sinks_of_another_text_are_refused(result):
    others = interp.probe(seeing("llava"), "w1 <image> w5", "visual_sinks", images=picture(0, 96, 64))["visual_sinks"]
    with pytest.raises(FigureError, match="of another text or image; probe both in one call"):
        interp.figures.image_attention(result, sinks=others)
    with pytest.raises(FigureError, match="draws a result of the probe 'visual_sinks'"):
        interp.figures.image_attention(result, sinks=result)


def test_tiles_are_put_together_and_the_whole_stands_apart():
    result = probed("idefics3")[NAME]
    own = picture(0, 96, 64)
    figure = interp.figures.image_attention(result, picture=own)
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["the picture", "parts, put together", "the whole, seen once more"]
    assert len(figure.layout.images) == 3
    parts, whole = heats(figure)
    assert np.isfinite(parts.z).all(), "parts cover the picture"
    view = result.view.values
    assert set(parts.customdata.ravel().astype(int)) == set(np.flatnonzero(view == "part"))
    assert set(whole.customdata.ravel().astype(int)) == set(np.flatnonzero(view == "whole"))
    for heat in (parts, whole):
        for token in np.unique(heat.customdata).astype(int):
            rows, columns = np.nonzero(heat.customdata == token)
            drawn = heat.x[columns.min()], heat.y[rows.min()], heat.x[columns.max() + 1], heat.y[rows.max() + 1]
            assert drawn == pytest.approx(result.box.values[token].tolist(), abs=1.0)


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision", "smolvlm", "qwen2_5_vl", "internvl", "gemma4"])
def test_each_token_lies_in_its_box_whatever_the_family(kind):
    result = probed(kind)[NAME]
    drawn = 0
    for heat in heats(interp.figures.image_attention(result)):
        for token in np.unique(heat.customdata[np.isfinite(heat.customdata)]).astype(int):
            rows, columns = np.nonzero(heat.customdata == token)
            left, top, right, bottom = result.box.values[token]
            widest = max(right - left, bottom - top)
            assert heat.x[columns.min()] == pytest.approx(left, abs=0.3 * widest)
            assert heat.y[rows.max() + 1] == pytest.approx(bottom, abs=0.3 * widest)
            drawn += 1
    assert drawn == np.isfinite(result.box.values[:, 0]).sum()


def test_an_image_that_is_not_there_is_refused_and_one_without_places_is_shown_bare(result):
    with pytest.raises(FigureError, match="no image 3 in this result, which has 1"):
        interp.figures.image_attention(result, image=3)
    result.box.values[:] = np.nan
    figure = interp.figures.image_attention(result)
    assert [note.text for note in figure.layout.annotations][-1] == "no token has a place"
    assert not np.isfinite(heats(figure)[0].z).any()


def test_only_a_picture_of_the_librarys_own_making_is_drawn(result):
    result.attrs["pictures"] = '["https://example.org/track.png"]'
    assert not interp.figures.image_attention(result).layout.images
    result.attrs["pictures"] = "[["
    assert not interp.figures.image_attention(result).layout.images
