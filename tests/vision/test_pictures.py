"""Pictures of every kind that people have, as upright RGB; and what is none, as one sentence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from interp.errors import InterpError
from interp.vision import pictures
from interp.vision.pictures import nested, opened, thumbnail

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_halves() -> Image.Image:
    """Four pixels across and two down, red on the left and blue on the right."""
    image = Image.new("RGB", (4, 2), RED)
    image.paste(BLUE, (2, 0, 4, 2))
    return image


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "gif", "webp"])
def test_a_file_is_what_was_saved(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    two_halves().save(path, **({"lossless": True} if ending == "webp" else {}))
    for given in (path, str(path), path.read_bytes(), Image.open(path)):
        assert np.array_equal(np.asarray(opened(given)), np.asarray(two_halves()))


def test_arrays() -> None:
    levels = np.array([[0, 128], [255, 7]], dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(levels))[..., 0], levels)
    assert np.array_equal(np.asarray(opened(levels[..., None]))[..., 2], levels)
    assert np.array_equal(np.asarray(opened(levels / 255.0))[..., 1], levels)
    assert np.asarray(opened(levels > 100)).tolist()[0] == [[0] * 3, [255] * 3]
    colours = np.asarray(two_halves())
    assert np.array_equal(np.asarray(opened(colours)), colours)


def test_turned_as_the_camera_says() -> None:
    """EXIF orientation 6: turned a quarter to the right for whoever looks at it."""
    image, exif = two_halves(), Image.Exif()
    exif[0x0112] = 6
    held = io.BytesIO()
    image.save(held, "PNG", exif=exif)
    seen = opened(Image.open(held))
    assert seen.size == (2, 4)
    assert seen.getpixel((0, 0)) == RED
    assert seen.getpixel((0, 3)) == BLUE


def test_transparency_is_white() -> None:
    image = two_halves().convert("RGBA")
    image.putalpha(Image.fromarray(np.array([[255, 255, 0, 128]] * 2, dtype=np.uint8)))
    seen = [opened(image).getpixel((x, 0)) for x in range(4)]
    assert seen[:3] == [RED, RED, WHITE]
    assert seen[3] == pytest.approx((127, 127, 255), abs=1)
    palette = two_halves().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    palette.info["transparency"] = palette.getpixel((3, 0))
    assert [opened(palette).getpixel((x, 0)) for x in (0, 3)] == [RED, WHITE]


def test_other_colours() -> None:
    assert opened(two_halves().convert("CMYK")).getpixel((3, 1)) == BLUE
    assert opened(Image.new("1", (3, 3), 1)).getpixel((0, 0)) == WHITE
    assert opened(Image.new("L", (3, 3), 9)).getpixel((0, 0)) == (9, 9, 9)
    deep = Image.fromarray(np.array([[0, 65535], [32768, 256]], dtype=np.uint16))
    assert np.asarray(opened(deep))[..., 0].tolist() == [[0, 255], [128, 1]]


def animation(path: Path) -> Path:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE, WHITE)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def test_what_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    two_halves().resize((400, 400)).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    for given, said in [
        (tmp_path / "words.png", "no image that can be read"),
        (tmp_path / "empty.png", "no image that can be read"),
        (tmp_path / "cut.png", "cannot be read"),
        (tmp_path / "none.png", "there is no image"),
        (tmp_path, "is a folder"),
        (animation(tmp_path / "a.gif"), "an animation of 3 frames"),
        (7, "found int"),
        (b"bytes", "no image that can be read"),
        (np.zeros((2, 2, 5), dtype=np.uint8), r"found \[2, 2, 5\]"),
        (np.zeros((0, 2), dtype=np.uint8), r"found \[0, 2\]"),
        (np.full((2, 2), 300), "found int64"),
        (np.full((2, 2), 2.5), "outside of 0 to 1"),
        (np.full((2, 2), np.nan), "outside of 0 to 1"),
    ]:
        with pytest.raises(InterpError, match=said):
            opened(given)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 5)
    with pytest.raises(InterpError, match="4 x 2 pixels"):
        opened(two_halves())


def test_a_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kilobytes that say they are hundreds of megapixels."""
    path = tmp_path / "bomb.png"
    Image.new("1", (13_000, 12_000)).save(path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InterpError, match="13000 x 12000 pixels"):
        opened(path)


def test_images_of_texts() -> None:
    one = two_halves()
    assert [len(row) for row in nested(one, 1, True)] == [1]
    assert [len(row) for row in nested([one, one], 1, True)] == [2]
    assert [len(row) for row in nested([one, [one, one], []], 3, False)] == [1, 2, 0]
    with pytest.raises(InterpError, match="3 texts and images for 1"):
        nested(one, 3, False)


def test_thumbnails_are_small() -> None:
    address = thumbnail(Image.new("RGB", (4000, 300), BLUE))
    assert address.startswith("data:image/jpeg;base64,")
    assert len(address) < 5000


def test_bytes_that_are_no_picture_are_called_what_they_are_said_to_be() -> None:
    with pytest.raises(InterpError, match=r"^<b>\.png is no image that can be read; save it as PNG or JPEG\.$"):
        opened(b"no picture", "<b>.png")
