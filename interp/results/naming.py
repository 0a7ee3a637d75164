"""How findings name tokens, layers and heads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np


def quoted(text: str) -> str:
    """A token's text in quotes on one line, control characters escaped."""
    return json.dumps(str(text), ensure_ascii=False)


def ranges(numbers: Iterable[int]) -> str:
    """Rising numbers with neighbours joined: '0-2, 5'."""
    steps = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    stretches = [[int(number) for _, number in step] for _, step in steps]
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else f"{s[0]}" for s in stretches)


def layers_named(layers: Sequence[int]) -> str:
    """'layer 3', 'layers 0-2, 5'."""
    return f"layer{'s' * (len(layers) > 1)} {ranges(layers)}"


def heads_named(mask: np.ndarray, layers: Iterable[int], most: int = 40) -> str:
    """The heads where `mask [layer, head]` is true: 'layer 0 heads 2-5, 7; layer 3 head 1', the first `most` layers."""
    named = []
    for layer, row in zip(layers, mask, strict=True):
        heads = np.flatnonzero(row)
        if len(heads):
            named.append(f"layer {layer} head{'s' * (len(heads) > 1)} {ranges(heads)}")
    shown = "; ".join(named[:most])
    return shown if len(named) <= most else f"{shown}; and in {len(named) - most} more layers"
