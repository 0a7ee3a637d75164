"""Pictures that a person passes, as upright RGB images."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from interp.errors import InterpError

MOST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: no model sees that many pixels."""


def opened(picture: Any, what: str = "the image") -> Image.Image:
    """One picture as RGB, turned as its EXIF data say, transparency on white.

    Args:
        picture: a path, a PIL image, or an array `[height, width]`, `[height, width, 3 or 4]`, of bytes or of floats
            from 0 to 1.
        what: what to call it in an error.

    Raises:
        InterpError: it cannot be read, has several frames, or is larger than `MOST_PIXELS`.

    Examples:
        >>> import numpy as np
        >>> opened(np.zeros((4, 6), dtype="uint8")).size
        (6, 4)
    """
    if isinstance(picture, (str, Path)):
        return _plain(_read(Path(picture).expanduser()), f"{what} {picture}")
    if isinstance(picture, Image.Image):
        return _plain(picture, what)
    if hasattr(picture, "__array__"):
        return _plain(_of_array(np.asarray(picture), what), what)
    raise InterpError(f"{what} should be a path, a PIL image or an array, found {type(picture).__name__}.")


def _read(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():
        raise InterpError(f"{path} is no file that an image could be in.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is looked at before decoding
            return Image.open(path)
    except FileNotFoundError:
        raise InterpError(f"there is no image {path}.") from None
    except UnidentifiedImageError:
        raise InterpError(f"{path} is no image that can be read; save it as PNG or JPEG.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InterpError(f"the image {path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _of_array(array: np.ndarray, what: str) -> Image.Image:
    channels = array.shape[-1] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise InterpError(f"{what} should be [height, width] or [height, width, 3], found {list(array.shape)}.")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InterpError(f"{what} holds numbers outside of 0 to 1; give bytes, or floats in that range.")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        raise InterpError(f"{what} should hold bytes (uint8) or floats from 0 to 1, found {array.dtype}.")
    return Image.fromarray(array[..., 0] if channels == 1 and array.ndim == 3 else array)


def _plain(picture: Image.Image, what: str) -> Image.Image:
    if (frames := getattr(picture, "n_frames", 1)) > 1:
        raise InterpError(f"{what} is an animation of {frames} frames; pass one of them.")
    width, height = picture.size
    if not width or not height:
        raise InterpError(f"{what} has no pixels.")
    if width * height > MOST_PIXELS:
        raise InterpError(f"{what} has {width} x {height} pixels; scale it down to {MOST_PIXELS // 10**6} megapixels.")
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
            seen = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
        if upright.mode.startswith(("I", "F")):  # which PIL would cut off at 255
            return Image.fromarray(_levels(np.asarray(upright, dtype=float))).convert("RGB")
        return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InterpError(f"{what} cannot be read: {' '.join(str(error).split())[:200]}") from error


def _levels(numbers: np.ndarray) -> np.ndarray:
    """Numbers of more than eight bits as bytes: of 16 bits the upper eight, others from the least to the largest."""
    low, high = (0.0, 65535.0) if numbers.min() >= 0 and numbers.max() > 255 else (numbers.min(), numbers.max())
    return ((numbers - low) / max(high - low, 1e-30) * 255).round().astype(np.uint8)


def thumbnail(picture: Image.Image, longest: int = 320) -> str:
    """A small JPEG of a picture as a `data:` address, for results to carry along."""
    small = picture.copy()
    small.thumbnail((longest, longest))
    held = io.BytesIO()
    small.save(held, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode('ascii')}"


def nested(images: Any, n_texts: int, single: bool) -> list[list[Image.Image]]:
    """The images of each text: of one text an image or several, of several texts an image or a list for each.

    Raises InterpError where their number is not that of the texts.
    """
    several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    if single:
        given = [list(images) if several else [images]]
        if several and len(images) == 1 and isinstance(images[0], (list, tuple)):
            given = [list(images[0])]
    else:
        if not several or len(images) != n_texts:
            found = len(images) if several else 1
            raise InterpError(f"there are {n_texts} texts and images for {found}; pass an image or a list for each.")
        given = [list(one) if isinstance(one, (list, tuple)) else [one] for one in images]
    return [[opened(one, f"image {i}") for i, one in enumerate(row)] for row in given]
