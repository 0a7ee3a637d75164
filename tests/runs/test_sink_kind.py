"""Sinks planted by place stay, and sinks planted by content follow it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import interp
from interp import InterpError
from interp.results.storage import load, save
from interp.runs.sink_kind import TRANSFORMS, Reading, Seen, _compared
from interp.vision.cells import destinations, follow, grid_of, rearranged
from tests.interventions.edited_by_hand import one_sentence
from tests.lens.test_images import seeing
from tests.models import shared as text_model
from tests.models import tiny, tokens
from tests.vision_models import picture, shared

TEXT, SIZE = "w1 <image> w2 w3", (96, 64)
SINKS = interp.VisualSinks(tau_rel=0.6)
RED, GREY = (250, 10, 10), (110, 120, 130)


def grown(stream: torch.Tensor, places: Any) -> torch.Tensor:
    stream = stream.clone()
    stream[:, places, 5] += 400.0
    stream[:, places, 40] -= 240.0
    return stream


def read(kind: str) -> xr.Dataset:
    return interp.probe(seeing(kind), TEXT, "vision_registers", images=picture(0, *SIZE))["vision_registers"]


def kind_of(kind: str, images: Any, **how: Any) -> xr.Dataset:
    return interp.sink_kind(seeing(kind), TEXT, images, sinks=SINKS, **how)


def tiles(*red: int) -> Image.Image:
    """Grey with red in some of the 4 x 4 cells that LLaVA sees, those of the square in the middle."""
    made = Image.new("RGB", SIZE, GREY)
    for cell in red:
        left, top = 16 + 16 * (cell % 4), 16 * (cell // 4)
        made.paste(RED, (left, top, left + 16, top + 16))
    return made


@contextmanager
def sinks_where_red(kind: str) -> Iterator[None]:
    """Image tokens all of whose patches look more like red than like grey, before positions are added to them."""
    lens, (model, _) = seeing(kind), shared(kind)
    laid = read(kind).patch_token.values
    embedding = next(module for name, module in model.named_modules() if name.endswith("patch_embedding"))
    rows: list[torch.Tensor] = []
    handle = embedding.register_forward_hook(
        lambda module, args, out: rows.__setitem__(slice(None), [out.flatten(2).transpose(1, 2).flatten(0, 1)])
    )

    def looks(colour: tuple[int, int, int]) -> torch.Tensor:
        with torch.no_grad():
            lens(TEXT, images=Image.new("RGB", SIZE, colour))
        return rows[0][0]

    def plant(stream: torch.Tensor, hook: Any) -> torch.Tensor:
        near = ((rows[0] - red).norm(dim=-1) < (rows[0] - grey).norm(dim=-1)).numpy()
        return grown(stream, [t for t in set(laid[laid >= 0].tolist()) if near[laid == t].all()])

    red, grey = looks(RED), looks(GREY)
    try:
        with lens.hooks(fwd_hooks=[("blocks.0.hook_resid_post", plant)]):
            yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["llava", "llava_next", "idefics3", "qwen2_5_vl"])
def test_sinks_of_a_place_stay(kind: str, tmp_path: Path) -> None:
    at = int(np.flatnonzero(read(kind).modality.values == "image")[0])
    with seeing(kind).hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: grown(value, [at]))]):
        result = kind_of(kind, [picture(0, *SIZE), picture(1, *SIZE)])
    assert result.sinks.values.tolist() == [[0, 1, 1]] * 2
    np.testing.assert_array_equal(result.position.values[:, :, 1:], 1.0)
    np.testing.assert_array_equal(result.content.values[:, :, 1:], 0.0)
    assert np.isnan(result.position.values[:, :, 0]).all(), "planted behind the first layer"
    assert (float(result.position_all_low), float(result.content_all_high)) == (1, 0)
    assert "place of 100% (100% to 100%)" in result.attrs["summary"]
    xr.testing.assert_identical(load(save(result, tmp_path / "kind.nc")), result)


def test_sinks_of_a_content_follow_it() -> None:
    with sinks_where_red("llava"):
        result = kind_of("llava", [tiles(0), tiles(1), tiles(9)], seed=1)
    assert result.sinks.values[:, 1:].tolist() == [[1, 1]] * 3
    assert int(result.counted.sum()) >= 12
    assert float(result.position_all_mean) == 0
    assert float(result.content_all_mean) == 1
    assert float(result.chance_all_mean) == pytest.approx(1 / 16)


def test_they_follow_into_every_tile_and_the_thumbnail() -> None:
    """Idefics 3 sees the picture in tiles of 4 x 4 tokens and again in 2 x 2: both follow by cells of the latter."""
    quarter = Image.new("RGB", SIZE, GREY)
    quarter.paste(RED, (0, 0, 48, 32))
    with sinks_where_red("idefics3"):
        result = kind_of("idefics3", quarter, transforms=("roll", "flip"))
    assert result.sinks.values[0, 1] == 5
    np.testing.assert_array_equal(result.counted.values[0, :, 1], 5)
    assert (float(result.content_all_mean), float(result.position_all_mean)) == (1, 0)
    np.testing.assert_allclose(result.chance.values[0, :, 1], 0.25)
    assert "position_all_low" not in result, "one picture has no interval"


def test_random_sinks_are_as_often_there_as_chance_says() -> None:
    rng = np.random.default_rng(0)
    group = np.array([-1] * 3 + [0] * 16 + [1] * 64)

    def some() -> np.ndarray:
        found = np.zeros((1, len(group)), bool)
        for number, count in ((0, 4), (1, 8)):
            found[0, rng.choice(np.flatnonzero(group == number), count, replace=False)] = True
        return found

    def once() -> xr.Dataset:
        target = np.full(len(group), -1)
        for number in (0, 1):
            of_group = np.flatnonzero(group == number)
            target[of_group] = rng.permutation(of_group)
        return _compared(Reading([0], some(), group[None], [Seen(some(), target)]), ["permute"])

    found = [once() for _ in range(300)]
    chance, position, content = (
        np.mean([float(one[f"{name}_all"]) for one in found]) for name in ("chance", "position", "content")
    )
    assert 0.125 < chance < 0.25, "a quarter of the first view, an eighth of the second"
    assert position == pytest.approx(chance, abs=0.02)
    assert content == pytest.approx(chance, abs=0.02)


@pytest.mark.parametrize("by", ["place", "content"])
def test_of_texts(by: str) -> None:
    """All queries look for a channel that one place, or one word, has."""
    model, word = tiny("gpt2"), 24
    transformer = model.transformer
    with torch.no_grad():
        (transformer.wpe.weight[5] if by == "place" else transformer.wte.weight[word])[5] = 200.0
        for block in transformer.h:
            block.attn.c_attn.bias[:64] = 300 * block.attn.c_attn.weight[5, 64:128]
    ids = torch.arange(19, 39).expand(3, -1)
    result = interp.sink_kind(interp.load(model), ids, transforms=("roll", "permute"))
    assert result.counted.values[:, 0].min() > 0  # of those that are permuted some end among the last two
    expected = (1, 0) if by == "place" else (0, 1)
    assert (float(result.position_all_mean), float(result.content_all_mean)) == expected
    assert result.attrs["of"] == "text"
    assert float(result.chance_all_mean) == pytest.approx(1 / 18), "the last two are seen by too few"


def test_a_sink_that_cannot_move_says_nothing() -> None:
    lens, ids = interp.load(text_model("llama")), tokens(2, 20)

    still = interp.sink_kind(lens, ids)
    moved = interp.sink_kind(lens, ids, kept=0, transforms="roll")
    assert (still.sinks.values == 1).all(), "without training it is the first token, which most queries see"
    assert int(still.counted.sum()) == 0
    assert "nothing is said" in still.attrs["summary"]
    assert (float(moved.position_all_mean), float(moved.content_all_mean)) == (1, 0)


def test_without_sinks_it_says_so() -> None:
    assert kind_of("llava", picture()).attrs["summary"] == "No image token is a sink in any layer (1 image)."
    short = interp.sink_kind(interp.load(text_model("llama")), tokens(1, 1))
    assert int(short.counted.sum()) == 0


def test_where_contents_go() -> None:
    rng = np.random.default_rng(0)
    assert destinations("roll", (2, 3), rng).tolist() == [4, 5, 3, 1, 2, 0]
    assert destinations("flip", (2, 3), rng).tolist() == [2, 1, 0, 5, 4, 3]
    assert sorted(destinations("permute", (2, 3), rng)) == list(range(6))
    boxes = np.array([(x, y, x + 10, y + 10) for y in (0, 10) for x in (0, 10, 20)], float)
    grid, group = grid_of(boxes), np.zeros(6, int)
    for transform in TRANSFORMS:
        to = destinations(transform, grid.shape, rng)
        assert follow(boxes, grid, to, group).tolist() == to.tolist()
        seen = np.asarray(picture(0, 30, 20))
        made = np.asarray(rearranged(picture(0, 30, 20), grid, to))
        for cell, goal in enumerate(to):
            (r, c), (i, j) = divmod(cell, 3), divmod(int(goal), 3)
            old = seen[10 * r : 10 * r + 10, 10 * c : 10 * c + 10]
            np.testing.assert_array_equal(made[10 * i : 10 * i + 10, 10 * j : 10 * j + 10], old)
    # a token that straddles two cells arrives nowhere as a whole
    astride = np.vstack([boxes, [(5, 0, 25, 10)]])
    assert follow(astride, grid, destinations("roll", grid.shape, rng), np.zeros(7, int))[-1] == -1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"transforms": ["turn"]}, "transforms are some of roll, flip, permute"),
        ({"transforms": []}, "each once"),
        ({"transforms": ["roll", "roll"]}, "each once"),
        ({"kept": -1}, "kept should be at least 0"),
        ({"seed": 0.5}, "seed should be"),
        ({"images": [picture(), picture()], "inputs": [TEXT]}, "1 texts and 2 images do not pair up"),
        ({"images": []}, "do not pair up"),
        ({"images": picture(0, 3, 2)}, "pass a larger"),
        ({"inputs": "w1 w2"}, "<image>"),
    ],
)
def test_bad_arguments_are_one_sentence(how: dict[str, Any], said: str) -> None:
    with pytest.raises(InterpError, match=said) as told:
        interp.sink_kind(seeing("llava"), **{"inputs": TEXT, "images": picture(), **how})
    one_sentence(told.value)
