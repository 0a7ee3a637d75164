"""How each kind looks: pictures of 48 pixels, cut from one sheet that ships with the library.

    python -m interp.subjects.emoji.sprites FONT

makes the sheet again from NotoColorEmoji.ttf of Debian's package fonts-noto-color-emoji. The font is of fixed pixels:
it is drawn at 109, cropped and made smaller. The sheet keeps five bits of a colour and four of its opacity.
"""

from __future__ import annotations

import io
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import InterpError
from interp.files.writing import write
from interp.subjects.emoji.kinds import KINDS

if TYPE_CHECKING:
    from PIL.Image import Image

SHEET = Path(__file__).parent / "sprites.webp"
SIDE = 48
COLUMNS = 16
FONT_SIZE = 109  # the only size that the font has
FONT = "NotoColorEmoji.ttf of Debian's package fonts-noto-color-emoji"


class SpritesError(InterpError):
    """A font that cannot be drawn from."""


@cache
def sprites() -> tuple[Image, ...]:
    """One RGBA picture a kind, in the order of `KINDS`, as wide and high as the thing itself: 48 pixels at most."""
    from PIL import Image

    with Image.open(SHEET) as file:
        sheet = file.convert("RGBA")
    cells = [(k % COLUMNS * SIDE, k // COLUMNS * SIDE) for k in range(len(KINDS))]
    found = [sheet.crop((left, top, left + SIDE, top + SIDE)) for left, top in cells]
    return tuple(one.crop(one.getchannel("A").getbbox()) for one in found)


def draw_sheet(font_file: Path) -> bytes:
    """The sheet as a WebP file without losses. Raises `SpritesError` for a font without these emoji."""
    from PIL import Image, ImageDraw, ImageFont

    try:
        font = ImageFont.truetype(font_file, FONT_SIZE)
    except OSError as error:
        raise SpritesError(f"{font_file} is no font of {FONT_SIZE} pixels ({error}); name {FONT}.") from None
    rows = -(-len(KINDS) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
    for k, kind in enumerate(KINDS):
        glyph = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
        ImageDraw.Draw(glyph).text((20, 20), kind.emoji, font=font, embedded_color=True)
        box = glyph.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
        if box is None:
            raise SpritesError(f"{font_file} has no picture of {kind.emoji} ({kind.name}); name {FONT}.")
        glyph = glyph.crop(box)
        glyph.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(glyph, (k % COLUMNS * SIDE, k // COLUMNS * SIDE))
    colour, opacity = sheet.convert("RGB"), sheet.getchannel("A")
    sheet = colour.point(lambda value: value & 0xF8).convert("RGBA")
    sheet.putalpha(opacity.point(lambda value: value // 17 * 17))
    content = io.BytesIO()
    sheet.save(content, "WEBP", lossless=True, quality=100, method=6)
    return content.getvalue()


if __name__ == "__main__":
    print(f"wrote {write(SHEET, draw_sheet(Path(sys.argv[1])))}")
