"""Where image tokens lie, measured, against what is known of ten layouts; and as coordinates of results."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.errors import InterpError, UnsupportedModelError
from interp.lens.image_layout import layout
from interp.lens.image_places import places
from interp.results import storage
from interp.results.many_texts import one
from tests.lens.test_images import seeing
from tests.vision_models import NAMES, built, picture

SIZE = (96, 64)
GAP = np.full((1, 4), np.nan)


def grid(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Boxes in raster order between edges."""
    return np.array([
        (left, top, right, bottom)
        for top, bottom in pairwise(rows) for left, right in pairwise(columns)
    ])  # fmt: skip


def even(left: float, top: float, right: float, bottom: float, across: int, down: int) -> np.ndarray:
    return grid(np.linspace(left, right, across + 1), np.linspace(top, bottom, down + 1))


def tiled(across: int, down: int, inside: int) -> np.ndarray:
    """Tiles in raster order, each of inside x inside tokens, then the whole picture in as many."""
    tiles = [even(*box, inside, inside) for box in even(0, 0, *SIZE, across, down)]
    return np.concatenate([*tiles, even(0, 0, *SIZE, inside, inside)])


def with_newlines() -> np.ndarray:
    """LLaVA-NeXT: the whole picture in 4 x 4 tokens of 24 x 16 pixels; then 8 tokens a row of the picture in 2 x 2
    tiles, with a newline. It is scaled to 56 x 38 and lies 9 rows below the edge of the tiles, in rows of 7."""
    edges = np.clip((7 * np.arange(1, 8) - 9) * 64 / 38, 0, 64)
    rows = [grid(np.linspace(0, 96, 9), edges[i : i + 2]) for i in range(6)]
    return np.concatenate([even(0, 0, 96, 64, 4, 4), *(np.concatenate([row, GAP]) for row in rows)])


EXPECTED = {
    "llava": even(16, 0, 80, 64, 4, 4),  # shortest edge to 56, the middle cut out
    "llava_next": with_newlines(),
    "llava_onevision": with_newlines(),
    "idefics3": tiled(2, 2, 2),
    "smolvlm": tiled(2, 2, 2),
    "qwen2_vl": even(0, 0, 96, 64, 3, 2),  # to 84 x 56, cells of 28
    "qwen2_5_vl": even(0, 0, 96, 64, 3, 2),
    "qwen3_vl": even(0, 0, 96, 64, 3, 2),
    "internvl": tiled(2, 2, 2),
    "gemma3": even(0, 0, 96, 64, 2, 2),
    "gemma4": even(0, 0, 96, 64, 10, 6),
    "paligemma": even(0, 0, 96, 64, 4, 4),
    "glm46v": even(0, 0, 96, 64, 3, 2),
}


@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_where_each_family_puts_its_tokens(name: str) -> None:
    found, expected = places(seeing(name), SIZE).boxes.numpy(), EXPECTED[name]
    assert found.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, atol=0.6)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("qwen2_5_vl", (60, 100), even(0, 0, 60, 100, 2, 4)),
        ("qwen2_vl", (180, 120), even(0, 0, 180, 120, 6, 4)),
        ("llava", (50, 90), even(0, 20, 50, 70, 4, 4)),
        ("gemma4", (40, 120), None),
        ("paligemma", (301, 17), even(0, 0, 301, 17, 4, 4)),
    ],
)
def test_boxes_of_other_sizes(name: str, size: tuple[int, int], expected: np.ndarray | None) -> None:
    found = places(seeing(name), size).boxes.numpy()
    if expected is not None:
        np.testing.assert_allclose(found, expected, atol=1.0)
    area = float(((found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])).sum())
    assert area == pytest.approx(size[0] * size[1] if name != "llava" else 50 * 50, rel=0.03)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3"])
@torch.no_grad()
def test_a_change_inside_a_box_moves_its_token_most(name: str) -> None:
    """By the other way round: patches are changed, and tokens looked at as the language model gets them."""
    lens, base = seeing(name), np.full((64, 96, 3), 120, dtype=np.uint8)
    boxes = places(lens, SIZE).boxes.numpy()

    def tokens(image: np.ndarray) -> torch.Tensor:
        _, cached = lens.run_with_cache("<image>", images=image, names_filter="vision.blocks.0.hook_resid_pre")
        return cached["vision.blocks.0.hook_resid_pre"].flatten(0, -2)

    quiet = tokens(base)
    for left, top, right, bottom in boxes[: 4 if name == "idefics3" else None].round().astype(int):
        changed = base.copy()
        changed[top + 3 : bottom - 3, left + 3 : right - 3] = 250
        moved = (tokens(changed) - quiet).norm(dim=-1)
        share = ((right - left) * (bottom - top)) / (96 * 64)
        assert 0 < float((moved > 1e-4).double().mean()) < 3 * share + 0.25


def test_few_passes_of_the_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = built("llava_next")
    lens, passes = interp.Lens(model, processor), []
    model.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    places(lens, SIZE)
    assert len(passes) == 1
    places(lens, SIZE)
    assert len(passes) == 1, "what is known is kept"


class Mixing(nn.Module):
    """What makes every token of all patches, as a resampler does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.inner(x)
        mixer = torch.randn(made.shape[1], made.shape[1], generator=torch.Generator().manual_seed(0))
        return mixer @ made


def test_tokens_without_a_place_are_refused() -> None:
    model, processor = built("llava")
    model.model.multi_modal_projector = Mixing(model.model.multi_modal_projector)
    with pytest.raises(UnsupportedModelError, match="have no place"):
        places(interp.Lens(model, processor), SIZE)


def test_weights_get_no_gradients() -> None:
    lens = interp.Lens(*built("qwen2_5_vl"))
    places(lens, SIZE)
    assert all(weight.grad is None for weight in lens.model.parameters())


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "qwen3_vl", "gemma3"])
def test_results_know_where_their_tokens_lie(name: str, tmp_path: Path) -> None:
    lens = seeing(name)
    texts, images = ["w1 <image> w2 <image> w3", "<image> w2"], [[picture(), picture(1, *SIZE)], [picture(2)]]
    result = interp.probe(lens, texts, ["text_sinks"], images=images)["text_sinks"]
    storage.save(result, tmp_path / "seen.nc")
    first = one(storage.load(tmp_path / "seen.nc"), 0)
    alone = interp.probe(lens, texts[0], ["text_sinks"], images=images[0])["text_sinks"]
    for known in (first, alone):
        images_of = known.image.values[known.modality.values == "image"]
        assert images_of.tolist() == sorted(images_of)
        assert set(images_of) == {0, 1}
        second = known.box.values[(known.image.values == 1) & (known.modality.values == "image")]
        expected = EXPECTED[name][~np.isnan(EXPECTED[name][:, 0])]
        np.testing.assert_allclose(second, expected, atol=0.6)
        words = known.modality.values[np.isin(known.token_text.values, [" w1", "w1", " w3", "w3"])]
        assert set(words) == {"text"}
    np.testing.assert_array_equal(first.tile.values, alone.tile.values)


def test_thumbnails_are_told_from_tiles() -> None:
    lens = seeing("idefics3")
    tokens = lens.read_arguments("<image> w1", None, {"images": [picture(0, *SIZE)]}, interp.lens.spelling.Spelling())
    found = layout(lens, tokens.tokens[0], [SIZE])
    assert found.view[found.tile == 4].tolist() == ["whole"] * 4
    assert found.view[found.tile == 0].tolist() == ["part"] * 4
    with pytest.raises(InterpError, match="tokens, and the text has"):
        layout(lens, tokens.tokens[0], [SIZE, SIZE])
