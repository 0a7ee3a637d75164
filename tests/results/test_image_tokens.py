"""Boxes of a picture become the tokens that lie in them, and nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import interp
from interp import InterpError
from tests.vision_models import picture, shared


def grid(across: int = 4, pixels: float = 10.0, before: int = 2) -> xr.Dataset:
    """`before` tokens of text, then a grid of image tokens, then one of text."""
    cells = [(x * pixels, y * pixels, (x + 1) * pixels, (y + 1) * pixels) for y in range(across) for x in range(across)]
    nowhere = [(np.nan,) * 4]
    n = before + len(cells) + 1
    modality = np.array(["text"] * before + ["image"] * len(cells) + ["text"], dtype=object)
    number = np.where(modality == "image", 0, -1)
    return xr.Dataset(
        coords={
            "token": np.arange(n),
            "modality": ("token", modality),
            "image": ("token", number),
            "box": (("token", "side"), np.array(nowhere * before + cells + nowhere)),
        }
    )


def test_a_box_takes_the_tokens_that_lie_in_it() -> None:
    assert interp.image_tokens(grid(), (0, 0, 20, 10)) == (2, 3)
    assert interp.image_tokens(grid(), (10, 10, 20, 40)) == (7, 11, 15)
    assert interp.image_tokens(grid()) == tuple(range(2, 18))


@pytest.mark.parametrize(("share", "found"), [(0.5, (2,)), (0.39, (2, 3)), (1.0, (2,))])
def test_a_token_that_lies_partly_in_it_needs_its_share(share: float, found: tuple[int, ...]) -> None:
    assert interp.image_tokens(grid(), (0, 0, 14, 10), share=share) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"box": (5, 5, 5, 9)}, "with an area"),
        ({"box": (1, 2, 3)}, "with an area"),
        ({"box": (50, 50, 60, 60)}, r"reach to \(40, 40\)"),
        ({"image": 3}, "there is no image 3"),
        ({"share": 0.0}, "share should be above 0"),
        ({"box": (0, 0, float("nan"), 4)}, "with an area"),
    ],
)
def test_what_is_no_box_is_a_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InterpError, match=said):
        interp.image_tokens(grid(), **given)


def test_a_text_without_images_is_refused() -> None:
    with pytest.raises(InterpError, match="read an image"):
        interp.image_tokens(xr.Dataset({"x": ("token", [1.0])}))


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_knocked_out_tokens_are_those_of_the_box(name: str) -> None:
    """Attention to a corner is gone, and to nothing else."""
    lens, image = interp.load(*shared(name)), picture(1)
    seen = interp.probe(lens, "<image> w3 w4", "image_attention", images=image)["image_attention"]
    keys = interp.image_tokens(seen, (0, 0, image.width / 2, image.height / 2), share=0.9)
    every = interp.image_tokens(seen)
    assert set(keys) < set(every)
    with lens.apply(interp.KnockOut(keys=keys)):
        _, cache = lens.run_with_cache(
            "<image> w3 w4",
            images=image,
            names_filter=lambda name: name.endswith("hook_pattern") and "vision" not in name,
        )
    received = cache["pattern", 1][0, :, -1].sum(0)
    assert float(received[list(keys)].sum()) == 0.0
    assert bool((received[[token for token in every if token not in keys]] > 0).all())
