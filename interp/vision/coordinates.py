"""Which point of a picture each number that a processor makes of it stands for, by pictures of coordinates.

A processor resizes, crops, pads, parts into tiles and reorders. All of that is the same for every picture of a size, so
pictures whose brightness rises from left to right, and from top to bottom, say where each number comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

Tensor = torch.Tensor
Given = dict[str, Any]


@dataclass(frozen=True)
class Coordinates:
    """For each number of `pixel_values` its place in the picture, in pixels from the left and from the top, and the
    number of its tile; NaN and the tile it lies in where it is padding."""

    x: Tensor
    y: Tensor
    tile: Tensor


def coordinates(read: Callable[[Image.Image], Given], size: tuple[int, int]) -> Coordinates:
    """Where the numbers of `read(picture)["pixel_values"]` lie, for pictures of `size` (width, height)."""
    width, height = size
    rng = np.random.default_rng(0)
    dark, bright = (_pixels(read(_grey(np.full((height, width), level)))) for level in (0.0, 255.0))
    columns = (np.arange(width) + 0.5) / width
    rows = (np.arange(height) + 0.5) / height
    span = bright - dark
    real = span.abs() > 1e-3 * span.abs().max()

    def at(share: np.ndarray, length: int) -> Tensor:
        # noise before rounding to bytes, so that a mean over a patch is finer than a level of brightness
        noise = rng.uniform(-0.5, 0.5, (height, width))
        seen = _pixels(read(_grey(np.clip(share * 255 + noise, 0, 255))))
        return torch.where(real, (seen - dark) / span * length, torch.nan)

    x = at(np.broadcast_to(columns[None], (height, width)), width)
    y = at(np.broadcast_to(rows[:, None], (height, width)), height)
    return Coordinates(x, y, _tiles(dark))


def _grey(levels: np.ndarray) -> Image.Image:
    plane = np.asarray(levels).round().astype(np.uint8)
    return Image.fromarray(np.repeat(plane[..., None], 3, -1))


def _pixels(given: Given) -> Tensor:
    pixels: Tensor = given["pixel_values"]
    return pixels.double()


def _tiles(pixels: Tensor) -> Tensor:
    """The number of the tile of each number: tiles are what stands before `[channel, row, column]`."""
    if pixels.ndim < 4:
        return torch.zeros(pixels.shape, dtype=torch.long)
    before = pixels.shape[:-3]
    numbers = torch.arange(before.numel()).view(*before, 1, 1, 1)
    return numbers.expand(pixels.shape)


def box_of(x: Tensor, y: Tensor, size: tuple[int, int]) -> Float[Tensor, 4]:
    """Left, top, right and bottom of a patch whose numbers stand for the points x and y, of which those that are
    padding are left out; NaN where all are."""
    real = ~x.isnan()
    x, y = x[real], y[real]
    if not len(x):
        return torch.full((4,), torch.nan, dtype=torch.double)
    side = max(2.0, (len(x) / 3) ** 0.5)  # points in a row, if the patch is square and has three colours
    # a row of evenly spaced points is as wide as this many of its standard deviations
    reach = 3**0.5 * side / (side**2 - 1) ** 0.5
    left, right = (x.mean() + sign * reach * x.std(unbiased=False) for sign in (-1, 1))
    top, bottom = (y.mean() + sign * reach * y.std(unbiased=False) for sign in (-1, 1))
    limits = torch.tensor([size[0], size[1], size[0], size[1]], dtype=torch.double)
    return torch.stack([left, top, right, bottom]).clamp_min(0).minimum(limits)
