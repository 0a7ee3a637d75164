"""What `interp bench kernels` times of residual_census."""

from __future__ import annotations

from collections.abc import Iterator

from ..timing import COPY, Maker, Timed
from . import residual_census


def timed(make: Maker) -> Iterator[Timed]:
    x = make(make.n, make.heads * make.d)
    yield Timed("residual census", lambda layer: residual_census(x, top=1), COPY, 2 * x.numel(), make.query_bytes)
