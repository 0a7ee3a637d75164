"""Scenes: what is promised of them, and what is drawn is where it is said to be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from interp.errors import UnknownNameError
from interp.subjects.emoji.examples import EXAMPLES, example_picture
from interp.subjects.emoji.held_out import pair_held_out
from interp.subjects.emoji.kinds import GROUPS, KINDS
from interp.subjects.emoji.scenes import MOST, OVERLAP, PATCH, SIDE, SIZES, Scene, Thing, background, make_scene
from interp.subjects.emoji.sprites import SHEET, SpritesError, draw_sheet, sprites

SEEN = [make_scene(seed) for seed in range(150)]
UNSEEN = [make_scene(seed, held_out=True) for seed in range(60)]


def has_held_out_pair(scene: Scene) -> bool:
    return any(pair_held_out(one, other) for one in scene.kinds for other in scene.kinds)


def test_there_are_enough_kinds_and_no_name_twice() -> None:
    assert len(KINDS) >= 150
    assert len({kind.name for kind in KINDS}) == len({kind.emoji for kind in KINDS}) == len(KINDS)
    assert {kind.group for kind in KINDS} == set(GROUPS)


@pytest.mark.parametrize(("name", "some"), [("cat", "a cat"), ("apple", "an apple"), ("socks", "some socks")])
def test_a_thing_is_named_as_people_say_it(name: str, some: str) -> None:
    assert next(kind for kind in KINDS if kind.name == name).some == some


def test_a_seed_makes_one_scene() -> None:
    assert [make_scene(seed) for seed in range(20)] == SEEN[:20]
    assert len(set(SEEN)) == len(SEEN)


def test_pairs_that_are_held_out_are_in_held_out_scenes_only() -> None:
    assert not any(has_held_out_pair(scene) for scene in SEEN)
    assert all(has_held_out_pair(scene) for scene in UNSEEN)


def test_every_kind_has_partners_in_both() -> None:
    for one in range(len(KINDS)):
        held_out = sum(pair_held_out(one, other) for other in range(len(KINDS)))
        assert 0 < held_out < len(KINDS) / 4, KINDS[one]


def test_pairs_have_no_order() -> None:
    pairs = np.random.default_rng(0).integers(0, len(KINDS), (300, 2)).tolist()
    assert all(pair_held_out(one, other) == pair_held_out(other, one) for one, other in pairs)
    assert not pair_held_out(3, 3)


def test_things_lie_inside_and_apart() -> None:
    for scene in SEEN + UNSEEN:
        assert 1 <= len(scene.things) <= MOST
        for number, thing in enumerate(scene.things):
            assert 0 <= thing.left <= SIDE - thing.width
            assert 0 <= thing.top <= SIDE - thing.height
            assert SIZES[0] <= max(thing.width, thing.height) <= SIZES[1]
            assert all(thing.shared(other) <= OVERLAP for other in scene.things[:number])


def test_things_come_in_all_numbers_and_some_more_than_once() -> None:
    assert {len(scene.things) for scene in SEEN} == set(range(1, MOST + 1))
    repeated = sum(len(scene.kinds) < len(scene.things) for scene in SEEN)
    assert 0.1 < repeated / len(SEEN) < 0.5


def test_what_is_drawn_is_where_it_is_said_to_be() -> None:
    for scene in SEEN[:40]:
        differs = (np.asarray(scene.picture()) != background(scene.background)).any(-1)
        inside = np.zeros_like(differs)
        for thing in scene.things:
            box = np.s_[thing.top : thing.top + thing.height, thing.left : thing.left + thing.width]
            inside[box] = True
            assert differs[box].mean() > 0.2, thing.name
        assert not differs[~inside].any()


def test_patches_say_what_they_show() -> None:
    thing = Thing(7, left=32, top=48, width=32, height=32)  # over four patches exactly
    shown, middle = Scene((thing,), 0).patches()
    assert set(zip(*np.where(shown == 7), strict=True)) == {(3, 2), (3, 3), (4, 2), (4, 3)}
    assert list(zip(*np.where(middle), strict=True)) == [(4, 3)]
    assert (shown[shown != 7] == -1).all()


def test_every_thing_has_a_middle_that_shows_it() -> None:
    for scene in SEEN:
        shown, middle = scene.patches()
        for thing in scene.things:
            x, y = thing.centre
            assert middle[int(y) // PATCH, int(x) // PATCH]
        assert set(shown[middle].tolist()) <= scene.kinds


def test_sprites_are_no_larger_than_their_cells_and_differ() -> None:
    pictures = sprites()
    assert len(pictures) == len(KINDS)
    assert all(44 <= max(picture.size) <= 48 for picture in pictures)  # faint edges are cut off
    assert len({picture.tobytes() for picture in pictures}) == len(KINDS)
    assert SHEET.stat().st_size < 300_000


def test_a_font_without_emoji_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.ttf").write_bytes(b"no font")
    with pytest.raises(SpritesError, match="fonts-noto-color-emoji"):
        draw_sheet(tmp_path / "none.ttf")


FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


@pytest.mark.skipif(not FONT.exists(), reason="Debian's package fonts-noto-color-emoji is not installed")
def test_the_sheet_is_made_from_the_font() -> None:
    made, shipped = Image.open(io.BytesIO(draw_sheet(FONT))), Image.open(SHEET)
    assert np.abs(np.asarray(made, int) - np.asarray(shipped, int)).mean() < 8  # another version of the font


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_shows_what_its_name_says(name: str) -> None:
    scene = make_scene(EXAMPLES[name], held_out=True)
    assert np.array_equal(np.asarray(example_picture(name)), np.asarray(scene.picture()))
    assert all(thing.name in name for thing in scene.things)
    assert has_held_out_pair(scene), "together in no scene of the training"


def test_an_example_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(UnknownNameError, match="there is no example 'x'; there are pizza"):
        example_picture("x")
