"""How findings name layers, heads and tokens."""

from __future__ import annotations

import numpy as np
import pytest

from interp.results.naming import heads_named, layers_named, quoted, ranges


@pytest.mark.parametrize(
    ("numbers", "words"), [([], ""), ([3], "3"), ([0, 1], "0-1"), ([0, 2], "0, 2"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8")]
)
def test_ranges(numbers: list[int], words: str) -> None:
    assert ranges(numbers) == words


def test_layers() -> None:
    assert layers_named([4]) == "layer 4"
    assert layers_named([0, 1, 5]) == "layers 0-1, 5"


def test_heads() -> None:
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]], bool)
    assert heads_named(mask, [0, 1, 9]) == "layer 0 heads 0-1, 3; layer 9 head 2"
    assert heads_named(mask, [0, 1, 9], most=1) == "layer 0 heads 0-1, 3; and in 1 more layers"


def test_token_text_stays_on_one_line() -> None:
    assert quoted(' a"\n\x1b[0m') == '" a\\"\\n\\u001b[0m"'
