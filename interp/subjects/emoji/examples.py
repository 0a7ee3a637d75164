"""A handful of scenes to try things on, of held-out pairs of kinds; rendered when asked for, nothing to install."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.errors import UnknownNameError
from interp.subjects.emoji.scenes import make_scene

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLES = {
    "pizza, carrot, coconut, mushroom": 1,
    "newspaper, pie": 6,
    "crocodile, bed": 17,
    "three canoes, lion": 19,
    "bee, beetle, trumpet, gift, ant, butterfly": 13,
}
"""What is on each scene, and its seed."""


def example_picture(name: str) -> Image:
    """The picture of one of `EXAMPLES`.

    Examples:
        >>> from interp.subjects.emoji.examples import example_picture
        >>> example_picture("crocodile, bed").size
        (112, 112)
    """
    if name not in EXAMPLES:
        raise UnknownNameError(f"there is no example {name!r}; there are {'; '.join(EXAMPLES)}.")
    return make_scene(EXAMPLES[name], held_out=True).picture()
