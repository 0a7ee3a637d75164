"""Scenes: one to six things on a background, from a seed; how they are drawn, and what each patch of them shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from interp.subjects.emoji.held_out import pair_held_out
from interp.subjects.emoji.kinds import GROUPS, KINDS
from interp.subjects.emoji.sprites import sprites

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 112
"""Pixels of a scene, both ways."""
PATCH = 16
ACROSS = SIDE // PATCH
MOST = 6
"""Things in a scene."""
SIZES = (26, 46)
"""Pixels of the longer side of a thing; of four and more things none is longer than 36."""
OVERLAP = 0.04
"""Share of the smaller one's box that two boxes may have in common."""
COVERED = 0.15
"""Share of a patch that a thing has to cover for the patch to show it."""
MEMBERS = {group: [k for k, kind in enumerate(KINDS) if kind.group == group] for group in GROUPS}


@dataclass(frozen=True)
class Thing:
    """A thing: its kind by number, and its box in pixels."""

    kind: int
    left: int
    top: int
    width: int
    height: int

    @property
    def name(self) -> str:
        return KINDS[self.kind].name

    @property
    def centre(self) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        return self.left + self.width / 2, self.top + self.height / 2

    def shared(self, other: Thing) -> float:
        """Share of the smaller box that lies in both."""
        wide = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        high = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        smaller = min(self.width * self.height, other.width * other.height)
        return max(wide, 0) * max(high, 0) / smaller


@dataclass(frozen=True)
class Scene:
    """Things, the first at the back, and the seed of what lies behind them.

    Examples:
        >>> from interp.subjects.emoji.scenes import make_scene
        >>> make_scene(seed=3).picture().size
        (112, 112)
    """

    things: tuple[Thing, ...]
    background: int

    @property
    def kinds(self) -> set[int]:
        return {thing.kind for thing in self.things}

    def picture(self) -> Image:
        from PIL import Image

        picture = Image.fromarray(background(self.background)).convert("RGBA")
        for thing in self.things:
            picture.alpha_composite(_sprite(thing.kind, thing.width, thing.height), (thing.left, thing.top))
        return picture.convert("RGB")

    def patches(self) -> tuple[np.ndarray, np.ndarray]:
        """What every patch shows and whether it is the middle of a thing, both [row, column].

        Of a patch that several things cover it is the one that covers most; -1 is the background. The patch that a
        thing's centre lies in is its middle and shows it, whatever else does.
        """
        covered = np.zeros((len(self.things), SIDE, SIDE), bool)
        for number, thing in enumerate(self.things):
            opaque = np.asarray(_sprite(thing.kind, thing.width, thing.height))[..., 3] > 127
            covered[:number, thing.top : thing.top + thing.height, thing.left : thing.left + thing.width] &= ~opaque
            covered[number, thing.top : thing.top + thing.height, thing.left : thing.left + thing.width] = opaque
        share = covered.reshape(-1, ACROSS, PATCH, ACROSS, PATCH).mean((2, 4))
        kinds = np.array([thing.kind for thing in self.things])
        shown = np.where(share.max(0) >= COVERED, kinds[share.argmax(0)], -1)
        middle = np.zeros((ACROSS, ACROSS), bool)
        for thing in self.things:
            column, row = (int(pixels) // PATCH for pixels in thing.centre)
            shown[row, column], middle[row, column] = thing.kind, True
        return shown, middle


def make_scene(seed: int, *, held_out: bool = False, count: int | None = None) -> Scene:
    """A scene from a seed.

    Args:
        seed: the same seed makes the same scene.
        held_out: with a pair of kinds that no scene of the training has together; else without any such pair.
        count: how many things are tried to be laid; None: one to six. There are fewer where no room is left.
    """
    draw = np.random.default_rng([seed, held_out])
    while True:
        count_now = int(draw.integers(2 if held_out else 1, MOST + 1)) if count is None else count
        things = _lay(draw, _choose(draw, count_now, held_out))
        kinds = {thing.kind for thing in things}
        unseen = any(pair_held_out(one, other) for one in kinds for other in kinds)
        if things and unseen == held_out:
            return Scene(things, int(draw.integers(2**31)))


def _choose(draw: np.random.Generator, count: int, held_out: bool) -> list[int]:
    """Kinds, most of them of one or two groups, in one scene of three some of them more than once."""
    homes = draw.choice(list(GROUPS), 2, replace=False)
    repeats = draw.random() < 0.35
    chosen: list[int] = []
    while len(chosen) < count:
        if chosen and repeats and draw.random() < 0.6:
            chosen.append(int(draw.choice(chosen)))
            continue
        home = draw.random() < 0.75
        kind = int(draw.choice(MEMBERS[str(draw.choice(homes))] if home else len(KINDS)))
        if kind not in chosen and (held_out or not any(pair_held_out(kind, other) for other in chosen)):
            chosen.append(kind)
    if held_out and count > 1:  # a pair that the training does not have takes the place of two
        partners = [k for k in range(len(KINDS)) if pair_held_out(chosen[0], k)]
        if partners:
            chosen[-1] = int(draw.choice(partners))
    return chosen


def _lay(draw: np.random.Generator, kinds: list[int]) -> tuple[Thing, ...]:
    """A place for each kind, without much overlap; a kind for which no place is found is left out."""
    things: list[Thing] = []
    largest = 36 if len(kinds) > 3 else SIZES[1]
    for kind in kinds:
        side = int(draw.integers(SIZES[0], largest + 1))
        wide, high = sprites()[kind].size
        width, height = (max(round(side * part / max(wide, high)), 6) for part in (wide, high))
        for _ in range(40):
            left, top = (int(draw.integers(0, SIDE - part + 1)) for part in (width, height))
            thing = Thing(kind, left, top, width, height)
            if all(thing.shared(other) <= OVERLAP for other in things):
                things.append(thing)
                break
    return tuple(things)


@cache
def _sprite(kind: int, width: int, height: int) -> Image:
    from PIL.Image import Resampling

    return sprites()[kind].resize((width, height), Resampling.BILINEAR, reducing_gap=2)


def background(seed: int) -> np.ndarray:
    """What lies behind the things, in two colours: plain, shaded, clouded, striped or grained [y, x, channel]."""
    draw = np.random.default_rng(seed)
    first = draw.integers(40, 256, 3).astype(float)
    second = np.clip(first + draw.normal(0, 40, 3), 0, 255)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    angle = draw.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    pattern = draw.integers(5)
    if pattern == 0:
        amount = np.zeros_like(x)
    elif pattern == 1:
        amount = (along - along.min()) / np.ptp(along)
    elif pattern == 2:
        amount = _clouds(draw)
    elif pattern == 3:
        amount = (np.sin(along * draw.uniform(15, 70)) > 0) * 0.6
    else:
        amount = draw.random(x.shape)
    return np.asarray(first + (second - first) * amount[..., None]).astype(np.uint8)


def _clouds(draw: np.random.Generator) -> np.ndarray:
    """Soft blobs: few random numbers, enlarged."""
    from PIL import Image

    few = Image.fromarray(draw.integers(0, 256, (5, 5)).astype(np.uint8))
    return np.asarray(few.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
