"""Some tokens of an image among those that a result of `image_attention` holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from interp.figures._need import FigureError, choose


def chosen_patches(ds: xr.Dataset, patches: Sequence[int] | None) -> tuple[np.ndarray, str]:
    """Which tokens are meant, bool [token], and what they are called; None: all of all images.

    Raises FigureError where one of them is no token of an image.
    """
    of_image = ds["modality"].values == "image"
    if patches is None:
        return of_image, "the image"
    positions = ds["token"].values
    asked = sorted({int(patch) for patch in patches})
    if wrong := [patch for patch in asked if patch not in positions[of_image]]:
        own = positions[of_image]
        there = f"those of this text lie from {own.min()} to {own.max()}" if len(own) else "there is none"
        raise FigureError(f"token {wrong[0]} is no part of an image; {there}.")
    if not asked:
        raise FigureError("patches is empty; name a token of the image, or None for all of them.")
    return np.isin(positions, asked), f"patch {asked[0]}" if len(asked) == 1 else f"{len(asked)} patches"


def given_attention(ds: xr.Dataset, layer: int | None) -> tuple[xr.DataArray, str]:
    """Attention (query, token) in a layer or their mean, of the head that a result has or the mean over all, and which
    it is in words."""
    part = ds["attention"].mean("head") if "head" in ds["attention"].dims else ds["attention"]
    part = part.mean("layer") if layer is None else part.sel(layer=choose(ds, "layer", layer))
    where = f"mean of {ds.sizes['layer']} layers" if layer is None else f"layer {layer}"
    head = str(ds.attrs.get("heads", ""))
    return part.transpose("query", "token"), f"{where}, head {head}" if head.isdecimal() else where
