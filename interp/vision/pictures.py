"""Pictures that a person passes, as upright RGB images."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from interp.errors import InterpError
from interp.files.private import expanded
from interp.files.reading import read_bytes

MOST_PIXELS = 50_000_000
"""Larger pictures are refused before they are decoded: no model sees as many, and a small file can claim them."""
LONGEST = 200
"""How many times longer than wide a picture may be: processors that make its shorter side some 400 pixels long would
make gigabytes of a narrow strip."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What files may be. PIL reads some forty more, for one of which (EPS) it starts another program."""
_decoding = threading.Lock()
"""PIL decodes a picture when it is first looked at; two threads at once would get each other's bytes."""


def opened(picture: Any, what: str = "the image") -> Image.Image:
    """One picture as RGB, turned as its EXIF data say, transparency on white.

    Args:
        picture: a path, the bytes of a file, a PIL image, or an array `[height, width]`, `[height, width, 3 or 4]`, of
            bytes or of floats from 0 to 1.
        what: what to call it in an error.

    Raises:
        InterpError: it cannot be read, has several frames, or is larger than `MOST_PIXELS`.

    Examples:
        >>> import numpy as np
        >>> opened(np.zeros((4, 6), dtype="uint8")).size
        (6, 4)
    """
    if isinstance(picture, (str, Path)):
        content = read_bytes(expanded(picture, "the image"), "image")
        return _plain(_decoded(content, str(picture)), f"{what} {picture}")
    if isinstance(picture, bytes):
        return _plain(_decoded(picture, what), what)
    if isinstance(picture, Image.Image):
        return _plain(picture, what)
    if hasattr(picture, "__array__"):
        return _plain(_of_array(picture, what), what)
    raise InterpError(f"{what} should be a path, bytes, a PIL image or an array, found {type(picture).__name__}.")


def _decoded(content: bytes, what: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise InterpError(f"{what} is no image that can be read; save it as PNG or JPEG.") from None
    except Exception as error:  # the readers of PIL raise what they like of a damaged file
        raise InterpError(f"{what} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _of_array(given: Any, what: str) -> Image.Image:
    try:
        array = np.asarray(given)
    except Exception as error:  # as of tensors that have a gradient, or lie on another device
        raise InterpError(f"{what} cannot be read as a numpy array: {_reason(error)}") from error
    channels = array.shape[-1] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise InterpError(f"{what} should be [height, width] or [height, width, 3], found {list(array.shape)}.")
    _expect_bounded(array.shape[1], array.shape[0], what)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InterpError(f"{what} holds numbers outside of 0 to 1; give bytes, or floats in that range.")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        raise InterpError(f"{what} should hold bytes (uint8) or floats from 0 to 1, found {array.dtype}.")
    return Image.fromarray(array[..., 0] if channels == 1 and array.ndim == 3 else array)


def _expect_bounded(width: int, height: int, what: str) -> None:
    if not width or not height:
        raise InterpError(f"{what} has no pixels.")
    if width * height > MOST_PIXELS:
        raise InterpError(f"{what} has {width} x {height} pixels; scale it down to {MOST_PIXELS // 10**6} megapixels.")
    if max(width, height) > LONGEST * min(width, height):
        raise InterpError(f"{what} has {width} x {height} pixels, a strip; cut it, or put it on a ground.")


def _plain(picture: Image.Image, what: str) -> Image.Image:
    _expect_bounded(*picture.size, what)
    try:
        with _decoding:
            # beside its photo an MPO, which many phones write, holds others of the same scene
            if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
                raise InterpError(f"{what} is an animation of {frames} frames; pass one of them.")
            upright = ImageOps.exif_transpose(picture)
        if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
            seen = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
        if upright.mode.startswith(("I", "F")):  # which PIL would cut off at 255
            return Image.fromarray(_levels(np.asarray(upright), picture, what)).convert("RGB")
        return upright.convert("RGB")
    except InterpError:
        raise
    except Exception as error:  # as above
        raise InterpError(f"{what} cannot be read: {_reason(error)}") from error


def _levels(numbers: np.ndarray, picture: Image.Image, what: str) -> np.ndarray:
    """Numbers of 16 bits as bytes; others that are bytes as they are. Raises InterpError where they are neither."""
    if picture.mode.startswith("I;16") or picture.format == "PPM":  # whose numbers PIL brings to 16 bits
        return (numbers.astype(np.float32) / 257).round().astype(np.uint8)
    least, most = numbers.min(), numbers.max()
    if not (least >= 0 and most <= 255):
        raise InterpError(
            f"{what} holds numbers from {least:g} to {most:g} of which none is said to be black or white; make bytes "
            "of them, or an array of floats from 0 to 1."
        )
    return numbers.round().astype(np.uint8)


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
