"""Pictures of any origin: hostile files, odd arrays, one picture in several threads."""

from __future__ import annotations

import io
import os
import random
import struct
import threading
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from interp.errors import InterpError
from interp.vision.pictures import FORMATS, MOST_PIXELS, opened

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def _written(mode: str, kind: str) -> bytes:
    held = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(held, kind)
    return held.getvalue()


def _png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG that claims a size, with hardly any pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (_chunk(b"IHDR", head), extra, _chunk(b"IDAT", zlib.compress(bytes(1000))), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_a_picture_or_a_sentence(kind: str, tmp_path: Path) -> None:
    """The readers of PIL raise TypeError, struct.error, RuntimeError and what not."""
    draw = random.Random(kind)
    whole = [_written(mode, kind) for mode in ("RGB", "L", "RGBA") if not (mode == "RGBA" and kind in ("JPEG", "PPM"))]
    for _ in range(150):
        data = bytearray(draw.choice(whole))
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        for _ in range(draw.randrange(8)):
            if data:
                data[draw.randrange(min(len(data), draw.choice((60, 10**6))))] = draw.choice((0, 1, 127, 128, 255))
        (tmp_path / "damaged").write_bytes(data)
        with suppress(InterpError):
            assert opened(tmp_path / "damaged").mode == "RGB"


@pytest.mark.parametrize("kind", ["EPS", "PDF", "SPIDER", "ICNS", "JPEG2000"])
def test_other_kinds_of_files_are_not_decoded(kind: str, tmp_path: Path) -> None:
    """To read an EPS file PIL starts Ghostscript."""
    (tmp_path / "a.png").write_bytes(_written("L", kind))
    with pytest.raises(InterpError, match="no image that can be read; save it as PNG or JPEG"):
        opened(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        _png(8000, 8000),
        _png(9999, 9999),
        _png(20_000, 20_000),
        _png(2**31 - 1, 2**31 - 1),
        _png(0, 5),
        _png(1, 20_000),
        _png(10_000_000, 5),
        _png(4, 4, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))),
        _png(4, 4, _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7)))),
        b"",
    ],
)
def test_what_a_small_file_claims_is_not_made(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(InterpError, match=r"pixels|too large|cannot be read|no image"):
        opened(tmp_path / "bomb.png")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "~nobody-at-all/a.png", "", ".", "/dev/zero", "pipe", "circle"])
def test_names_of_no_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("circle").symlink_to("circle")
    with pytest.raises(InterpError):
        opened(name)


@pytest.mark.parametrize(
    "picture",
    [
        torch.zeros(3, 4, requires_grad=True),
        torch.zeros(3, 4, device="meta"),
        torch.zeros(3, 4, dtype=torch.bfloat16),
        np.broadcast_to(np.uint8(0), (10**6, 10**6)),
        np.broadcast_to(np.float32(0), (MOST_PIXELS, 2)),
        np.zeros((201, 1), dtype=np.uint8),
        np.array([[np.nan]]),
        np.float32(1.0),
        Image.fromarray(np.array([[np.nan, 1.0, 2.0]], dtype=np.float32)),
        Image.fromarray(np.array([[np.inf, 1.0, 2.0]], dtype=np.float32)),
        Image.fromarray(np.array([[-5, 1000]], dtype=np.int32)),
        b"bytes",
    ],
)
def test_odd_objects_are_a_sentence(picture: Any) -> None:
    with pytest.raises(InterpError):
        opened(picture)


def test_sixteen_bits_are_sixteen_bits_however_dark() -> None:
    """A dark picture is not brightened because none of its numbers is above 255."""
    dark, bright = (opened(Image.fromarray(np.full((2, 2), level, dtype=np.uint16))) for level in (200, 257 * 200))
    assert dark.getpixel((0, 0)) == (1, 1, 1)
    assert bright.getpixel((0, 0)) == (200, 200, 200)
    for mode in ("I", "F"):
        grey = Image.fromarray(PIXELS).convert("L")
        assert opened(grey.convert(mode)).tobytes() == grey.convert("RGB").tobytes()


def test_photos_of_phones_hold_others_beside_the_photo(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (40, 60), "white"), Image.new("RGB", (40, 60), "black")
    first.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[second])
    assert opened(tmp_path / "photo.jpg").tobytes() == first.tobytes()
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    with pytest.raises(InterpError, match="animation of 2 frames"):
        opened(tmp_path / "moving.gif")


def test_threads_that_share_a_picture(tmp_path: Path) -> None:
    """PIL decodes when a picture is first looked at; threads got each other's bytes, and wrong pixels."""
    pixels = np.random.default_rng(1).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    filters = list(warnings.filters)
    seen: list[bool] = []

    def look(picture: Any) -> None:
        seen.append(bool((np.asarray(opened(picture)) == pixels).all()))

    for _ in range(5):
        shared = Image.open(tmp_path / "a.png")
        threads = [threading.Thread(target=look, args=(one,)) for one in (shared, shared, shared, tmp_path / "a.png")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [True] * 20
    assert warnings.filters == filters, "which belong to the whole process"
