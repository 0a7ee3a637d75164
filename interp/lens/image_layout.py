"""What each token of a text with images is: text, part of an image or a separator; and where in the picture it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import InterpError
from interp.lens.image_places import Places, places
from interp.lens.protocol import TextLens
from interp.lens.tower import image_token

Tensor = torch.Tensor
SIDES = ("left", "top", "right", "bottom")
OF_IMAGES = ("image", "vision", "boi", "eoi", "row_col", "tile")
"""Words in the names under which processors and configs keep ids of tokens that stand around images."""


@dataclass(frozen=True)
class PatchLayout:
    """The rows of the tower's residual stream, all tiles of all images one after the other."""

    token: Int[np.ndarray, " row"]
    """The place in the text of the token that is made of a row; -1 where none is."""
    is_patch: Bool[np.ndarray, " row"]
    """Which rows show a part of a picture, as a class token and padding do not."""
    block: int
    """The tower's block whose output is the last that image tokens are made of."""
    apart: bool
    """Whether hardly a row goes into several tokens; else `token` says little."""


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one text, in order."""

    modality: np.ndarray
    """`text`, `image`, or `separator`: tokens around and between images and their tiles, and newlines inside."""
    image: Int[np.ndarray, " token"]
    """The number of the image, counted from 0; -1 for text."""
    tile: Int[np.ndarray, " token"]
    """The number of the tile within its image; -1 for text and separators."""
    view: np.ndarray
    """`whole` where a tile shows the whole picture, `part` where it shows a part, empty for other tokens."""
    box: Float[np.ndarray, "token 4"]
    """Left, top, right, bottom in pixels of the upright picture; NaN where a token has no place."""
    patches: PatchLayout | None = None

    @property
    def coordinates(self) -> dict[str, Any]:
        """As coordinates of a dataset with a `token` dimension."""
        return {
            "modality": ("token", self.modality),
            "image": ("token", self.image),
            "tile": ("token", self.tile),
            "view": ("token", self.view),
            "box": (("token", "side"), self.box, {"units": "pixels"}),
            "side": ("side", np.array(SIDES, dtype=object)),
        }


def layout(lens: TextLens, tokens: Int[Tensor, " pos"], sizes: Sequence[tuple[int, int]]) -> TokenLayout:
    """The layout of a text's tokens whose images have these sizes (width, height), in order.

    Raises InterpError where the tokens are not those of such images, UnsupportedModelError where they have no place.
    """
    ids = tokens.cpu().numpy()
    seen = np.flatnonzero(ids == image_token(lens.model, lens.processor))
    found = [places(lens, size) for size in sizes]
    if sum(len(one.boxes) for one in found) != len(seen):
        raise InterpError(
            f"{len(sizes)} images of these sizes have {sum(len(one.boxes) for one in found)} tokens, and the text has "
            f"{len(seen)}."
        )
    n = len(ids)
    modality = np.full(n, "text", dtype=object)
    modality[np.isin(ids, sorted(_around(lens)))] = "separator"
    image, tile = np.full(n, -1), np.full(n, -1)
    view, box = np.full(n, "", dtype=object), np.full((n, 4), np.nan)
    made_into: list[np.ndarray] = []
    start = 0
    for number, one in enumerate(found):
        own = seen[start : start + len(one.boxes)]
        start += len(own)
        tiles, placed = one.tiles.numpy(), ~np.isnan(one.boxes[:, 0].numpy())
        made_into.append(np.where(one.rows.token >= 0, own[one.rows.token], -1))
        modality[own] = np.where(placed, "image", "separator")
        image[own], tile[own], box[own] = number, tiles, one.boxes.numpy()
        whole = np.isin(tiles, one.whole.numpy()) | (np.unique(tiles[placed]).size == 1)
        view[own] = np.where(placed, np.where(whole, "whole", "part"), "")
        image[own[0] : own[-1] + 1][modality[own[0] : own[-1] + 1] == "separator"] = number
    return TokenLayout(modality, image, tile, view, box, _patches(found, made_into))


def _patches(found: Sequence[Places], made_into: Sequence[np.ndarray]) -> PatchLayout | None:
    if not found:
        return None
    is_patch = np.concatenate([one.rows.is_patch.numpy() for one in found])
    apart = all(one.rows.apart for one in found)
    return PatchLayout(np.concatenate(made_into), is_patch, max(one.rows.block for one in found), apart)


def _around(lens: TextLens) -> set[int]:
    """Ids of the tokens that stand around images, as the processor and the config of a model name them."""
    ids: set[int] = set()
    for owner in (lens.processor, lens.model.config):
        for name, value in vars(owner).items():
            if name.endswith(("_id", "_ids", "_index")) and any(word in name for word in OF_IMAGES):
                ids |= {one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, int)}
    named = [f"{word}_token_id" for word in ("vision_start", "vision_end", "image_start", "image_end", "boi", "eoi")]
    ids |= {one for name in named if isinstance(one := getattr(lens.processor.tokenizer, name, None), int)}
    return ids - {image_token(lens.model, lens.processor)}
