"""Norms of the tower's patches over the picture."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import interp
from tests.lens.test_images import seeing
from tests.vision_models import picture

NAME = "vision_registers"


def probed(kind: str = "llava") -> xr.Dataset:
    return interp.probe(seeing(kind), "w1 <image> w2", NAME, images=picture(0, 96, 64))[NAME].copy(deep=True)


def test_a_high_patch_is_framed_where_it_lies():
    result = probed()
    read = result.attrs["read_layer"]
    result.patch_norm.values[:] = 1.0
    result.patch_norm.loc[{"tower_layer": read}][5] = 9.0
    result.is_register.values[:] = 0
    result.is_register.loc[{"tower_layer": read}][5] = 1
    figure = interp.figures.tower_norms(result)
    heat, frame = (trace for trace in figure.data if trace.name or trace.type == "heatmap")
    row, column = np.unravel_index(heat.z.argmax(), heat.z.shape)
    token = int(result.patch_token.values[5])
    assert heat.customdata[row, column] == token
    left, top, right, bottom = result.box.values[token]
    assert left < np.nanmin(frame.x) < np.nanmax(frame.x) < right
    assert top < np.nanmin(frame.y) < np.nanmax(frame.y) < bottom
    assert figure.layout.title.text == f"Norms of patches after layer {read} of the tower; 1 of 16 are high"


def test_tokens_of_several_patches_have_the_largest():
    result = probed("idefics3")
    read = result.attrs["read_layer"]
    figure = interp.figures.tower_norms(result)
    norms, token = result.patch_norm.sel(tower_layer=read).values, result.patch_token.values
    for heat in (trace for trace in figure.data if trace.type == "heatmap"):
        for z, at in zip(np.ravel(heat.z), np.ravel(heat.customdata), strict=True):
            assert z == pytest.approx(norms[token == at].max())


def test_unknown_patches_are_not_drawn():
    result = probed()
    result = result.assign_coords(patch_token=("patch", np.full(result.sizes["patch"], -1)))
    figure = interp.figures.tower_norms(result)
    assert np.isnan(next(trace for trace in figure.data if trace.type == "heatmap").z).all()
