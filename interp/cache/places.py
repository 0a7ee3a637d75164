"""Which tokens a cache policy keeps, checked before any is dropped: a place too far would keep another text's token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from interp.cache.segments import Segment
from interp.errors import InterpError


def check_places(index: torch.Tensor, segments: Sequence[Segment], recent: int) -> None:
    """Raise InterpError where `index` does not name tokens `[batch, head, kept]` before the newest `recent` ones."""
    batch, heads = segments[0].keys.shape[:2]
    places = sum(map(len, segments)) - recent
    if index.ndim != 3 or index.shape[0] != batch or index.shape[1] % heads or index.is_floating_point():
        raise InterpError(
            f"a cache policy keeps tokens by whole numbers [{batch}, {heads} or a multiple, kept], found {index.dtype} "
            f"{list(index.shape)}."
        )
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < places:
        raise InterpError(
            f"a cache policy keeps tokens {int(index.min())} to {int(index.max())}, and there are 0 to {places - 1} "
            f"before the newest {recent}."
        )
