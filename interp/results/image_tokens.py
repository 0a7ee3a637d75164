"""`interp.image_tokens`: which tokens stand for an image, or for a box of it, as edits take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from interp.errors import InterpError


def image_tokens(
    result: xr.Dataset, box: Sequence[float] | None = None, *, image: int = 0, share: float = 0.5
) -> tuple[int, ...]:
    """Positions of the tokens that stand for an image, or for a box of it: keys for `KnockOut` and its like.

    Args:
        result: of a probe that read the image, with a dimension `token`.
        box: left, top, right and bottom, in pixels of the upright picture; None: all of it.
        image: the number of the image.
        share: how much of a token's own box has to lie in `box`, as a part of its area. Where a model sees the whole
            picture beside parts of it, tokens of both are taken.

    Raises InterpError for a result without images or of several texts, an image that it does not hold, a box that is no
    box, and one that no token lies in.

    Examples:
        >>> interp.image_tokens(results["image_attention"], (0, 0, 45, 60))
        (2, 3, 6, 7, 10, 11, 14, 15)
    """
    if not isinstance(result, xr.Dataset) or "box" not in result.coords or result["box"].dims != ("token", "side"):
        raise InterpError("image_tokens takes one result of a probe that read an image, of one text; found another.")
    if not 0 < share <= 1:
        raise InterpError(f"image_tokens: share should be above 0 and up to 1, found {share}.")
    own = (result["modality"].values == "image") & (result["image"].values == image)
    if not own.any():
        held = sorted({int(number) for number in result["image"].values if number >= 0})
        raise InterpError(f"image_tokens: there is no image {image}; the result holds {', '.join(map(str, held))}.")
    if box is None:
        return tuple(np.flatnonzero(own).tolist())
    corners = np.asarray(box, float) if np.shape(box) == (4,) else np.full(4, np.nan)
    if not (corners[:2] < corners[2:]).all():
        raise InterpError(f"image_tokens: a box is left, top, right, bottom in pixels, with an area, found {box}.")
    places = result["box"].values.astype(float)
    sides = np.minimum(places[:, 2:], corners[2:]) - np.maximum(places[:, :2], corners[:2])
    area = (places[:, 2:] - places[:, :2]).prod(1)
    inside = own & (sides.clip(0).prod(1) >= share * area) & (area > 0)
    if not inside.any():
        right, bottom = np.nanmax(places[own, 2]), np.nanmax(places[own, 3])
        raise InterpError(
            f"image_tokens: no token has {share:.0%} of its box in {tuple(box)}; the image's tokens reach to "
            f"({right:.0f}, {bottom:.0f}), so take a larger box or a smaller share."
        )
    return tuple(np.flatnonzero(inside).tolist())
