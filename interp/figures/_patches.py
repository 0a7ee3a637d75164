"""Some tokens of an image among those that a result of `image_attention` holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from interp.figures._need import FigureError


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
