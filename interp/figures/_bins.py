"""Long token axes drawn in few columns: neighbouring positions share one."""

from __future__ import annotations

import numpy as np

COLUMNS = 128  # more would be thinner than the pixels they are drawn with


def starts(tokens: int) -> np.ndarray:
    """First position of each column."""
    return np.arange(0, tokens, max(1, int(np.ceil(tokens / COLUMNS))))


def mean_in_bins(values: np.ndarray) -> np.ndarray:
    """`[..., token]` averaged over the positions of each column."""
    first = starts(values.shape[-1])
    width = np.diff(np.append(first, values.shape[-1]))
    return np.add.reduceat(values, first, axis=-1) / width


def texts_in_bins(texts: list[str]) -> list[str]:
    """The text of each column, its tokens joined."""
    first = starts(len(texts))
    return ["".join(texts[a:b]) for a, b in zip(first, np.append(first[1:], len(texts)), strict=True)]
