"""Pictures whose parts change places by whole tokens: the grid of a picture's tokens, and what moves in it where.

What lies inside a cell is left as it is, so that a token finds the content of another one unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from interp.errors import InterpError

Transform = Literal["roll", "flip", "permute"]
NEAR = 0.25
"""How far off a box may lie, in its own widths and heights, to be called the same."""


@dataclass(frozen=True)
class Grid:
    """Cells between edges, in raster order."""

    x: Float[np.ndarray, " edge"]
    y: Float[np.ndarray, " edge"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.y) - 1, len(self.x) - 1

    @property
    def corners(self) -> Float[np.ndarray, "cell 2"]:
        """Left and top of each cell."""
        x, y = np.meshgrid(self.x[:-1], self.y[:-1])
        return np.stack([x.ravel(), y.ravel()], -1)


def grid_of(boxes: Float[np.ndarray, "token 4"]) -> Grid:
    """The grid that boxes (left, top, right, bottom) are the cells of. Raises InterpError where they are none."""
    x, y = (_edges(boxes[:, side], boxes[:, side + 2]) for side in (0, 1))
    if (len(x) - 1) * (len(y) - 1) != len(boxes):
        raise InterpError(
            f"the {len(boxes):,} tokens of the picture are no grid, so nothing in it can change places by whole "
            "tokens; pass a larger picture, or one of another shape."
        )
    return Grid(x, y)


def _edges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The edges of rows or columns, of each the mean of what was measured."""
    apart = 0.5 * float(np.median(high - low))
    order = np.sort(low)
    starts = [part.mean() for part in np.split(order, np.flatnonzero(np.diff(order) > apart) + 1)]
    return np.array([*starts, high.max()])


def destinations(transform: Transform, shape: tuple[int, ...], rng: np.random.Generator) -> Int[np.ndarray, " cell"]:
    """For each cell of an array of this shape the number of the cell that its content goes to.

    `roll` moves everything by half of the array along each dimension, `flip` turns the order of the last one round,
    `permute` draws an order.
    """
    cells = np.arange(int(np.prod(shape)))
    if transform == "permute":
        return rng.permutation(cells)
    places = cells.reshape(shape)
    if transform == "flip":
        return np.flip(places, -1).ravel()
    return np.roll(places, [-(n // 2) for n in shape], range(len(shape))).ravel()


def rearranged(picture: Image.Image, grid: Grid, to: Int[np.ndarray, " cell"]) -> Image.Image:
    """The picture with the content of each cell at the cell that it goes to; what lies outside of the grid stays.

    Cells lie between whole pixels; one that is a pixel narrower than where it goes to is scaled.
    """
    x, y = grid.x.round().astype(int), grid.y.round().astype(int)
    if (np.diff(x) < 1).any() or (np.diff(y) < 1).any():
        rows, columns = grid.shape
        raise InterpError(
            f"a picture of {picture.size} pixels is cut into {columns} x {rows} cells; pass a larger one."
        )
    made = picture.copy()
    for cell, goal in enumerate(to):
        (row, column), (new_row, new_column) = (divmod(int(one), grid.shape[1]) for one in (cell, goal))
        part = picture.crop((x[column], y[row], x[column + 1], y[row + 1]))
        size = int(x[new_column + 1] - x[new_column]), int(y[new_row + 1] - y[new_row])
        made.paste(part if part.size == size else part.resize(size), (int(x[new_column]), int(y[new_row])))
    return made


def follow(
    boxes: Float[np.ndarray, "token 4"], grid: Grid, to: Int[np.ndarray, " cell"], group: Int[np.ndarray, " token"]
) -> Int[np.ndarray, " token"]:
    """For each token the token of its group that has its content afterwards; -1 where none has it as a whole.

    boxes: where tokens lie; NaN for those that lie nowhere.
    """
    shift = grid.corners[to] - grid.corners
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = boxes[:, 2:] - boxes[:, :2]
    found = np.full(len(boxes), -1)
    for token in np.flatnonzero(~np.isnan(boxes[:, 0])):
        column, row = (int(np.searchsorted(e, m)) - 1 for e, m in zip((grid.x, grid.y), middle[token], strict=True))
        if not (0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]):
            continue
        moved = boxes[token] + np.tile(shift[row * grid.shape[1] + column], 2)
        off = (np.abs(boxes - moved) / np.tile(size[token], 2)).max(-1)
        off = np.where((group == group[token]) & ~np.isnan(off), off, np.inf)
        if off.min() < NEAR:
            found[token] = int(off.argmin())
    return found
