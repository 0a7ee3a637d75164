"""The pictures of items, which are opened when a model looks at them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.vision.pictures import opened

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = Path | Callable[[], Any]
"""A file, or what makes a picture when it is looked at: a thousand of them are not held at once."""
GREY = (128, 128, 128)


def look(picture: Picture, *, blind: bool = False) -> Image:
    """A picture, opened; blind: a grey one of its size. Raises InterpError where it cannot be read."""
    seen = opened(picture() if callable(picture) else picture)
    if not blind:
        return seen
    from PIL import Image

    return Image.new("RGB", seen.size, GREY)
