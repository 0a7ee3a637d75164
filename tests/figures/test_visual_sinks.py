"""Heads that look at the image, φ by token and layer, and φ over the picture."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import interp
from interp.figures._need import FigureError
from interp.figures.phi_by_layer import ABOVE, BELOW
from tests.lens.test_images import seeing
from tests.vision_models import picture

TEXT = "w1 <image> w2 w3"


@pytest.fixture
def result() -> xr.Dataset:
    probe = interp.VisualSinks(channels=(3, 9), tau_rel=0.4)
    return interp.probe(seeing("llava"), TEXT, probe, images=picture(0, 96, 64))["visual_sinks"].copy(deep=True)


def test_a_head_that_looks_beside_the_sinks_stands_out(result):
    result.visual_share[:], result.visual_sink_share[:], result.image_centric[:] = 0.1, 0.08, 0.0
    result.visual_share[1, 2], result.visual_sink_share[1, 2], result.image_centric[1, 2] = 0.5, 0.1, 0.75
    result.visual_share[2, 0], result.visual_sink_share[2, 0] = 0.0, 0.0
    share, to_sinks, centric = interp.figures.image_heads(result).data
    assert share.z[1, 2] == pytest.approx(50)
    assert to_sinks.z[1, 2] == pytest.approx(20)
    assert to_sinks.z[0, 0] == pytest.approx(80)
    assert np.isnan(to_sinks.z[2, 0]), "nothing goes to the image, so no part of it goes to sinks"
    assert centric.z[1, 2] == pytest.approx(75)
    assert centric.z.sum() == pytest.approx(75)


def test_image_and_text_lie_apart_and_colours_break_at_the_threshold(result):
    tau = result.attrs["tau"]
    image = np.flatnonzero(result.modality.values == "image")
    result.phi.values[:] = 0.5
    result.phi.values[1, image[3]] = tau * 2
    figure = interp.figures.phi_by_layer(result)
    of_image, of_text = figure.data
    assert of_image.z.shape == (3, 16)
    assert of_text.z.shape == (3, result.sizes["token"] - 16)
    assert np.unravel_index(of_image.z.argmax(), of_image.z.shape) == (1, 3)
    assert of_image.x[3].startswith(f"{image[3]} (x ")
    colours = figure.layout.coloraxis
    at = [place for place, colour in colours.colorscale if colour in (BELOW[1], ABOVE[0])]
    assert [place * colours.cmax for place in at] == pytest.approx([tau, tau])
    assert f"τ = {tau:.1f}" in colours.colorbar.ticktext


def test_layers_in_which_no_channel_stands_out_are_gray(result):
    result.sink_channel.values[0] = -1
    of_image, of_text = interp.figures.phi_by_layer(result).data
    assert np.isnan(of_image.z[0]).all()
    assert np.isnan(of_text.z[0]).all()
    assert np.isfinite(of_image.z[1:]).all()


def test_tiles_and_images_are_parted():
    seen = interp.probe(seeing("idefics3"), TEXT, "visual_sinks", images=picture(0, 96, 64))["visual_sinks"]
    tiles = seen.tile.values[seen.modality.values == "image"]
    figure = interp.figures.phi_by_layer(seen)
    assert len(figure.layout.shapes) == np.count_nonzero(np.diff(tiles)) > 0
    figure = interp.figures.phi_in_picture(seen)
    assert len([trace for trace in figure.data if trace.type == "heatmap"]) == 2


def test_phi_lies_where_its_token_lies_and_an_uneven_layer_is_shown(result):
    image = np.flatnonzero(result.modality.values == "image")
    result.phi.values[:] = 1.0
    result.phi.values[2, image[6]] = 1.25 * result.attrs["tau"]
    figure = interp.figures.phi_in_picture(result)
    (heat,) = [trace for trace in figure.data if trace.type == "heatmap"]
    row, column = np.unravel_index(heat.z.argmax(), heat.z.shape)
    left, top, right, bottom = result.box.values[image[6]]
    assert (heat.x[column], heat.y[row], heat.x[column + 1], heat.y[row + 1]) == pytest.approx(
        (left, top, right, bottom), abs=0.6
    )
    assert figure.layout.title.text == "Sink value φ in layer 2; 1 of 16 tokens are sinks"
    assert "layer 0; 0 of 16" in interp.figures.phi_in_picture(result, layer=0).layout.title.text
    with pytest.raises(FigureError, match="layer 5 is not in this result"):
        interp.figures.phi_in_picture(result, layer=5)
