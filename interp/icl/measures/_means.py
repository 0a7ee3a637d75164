"""Means over tasks with their standard errors."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Mean(NamedTuple):
    """A mean over `tasks` independent tasks; NaN where there are too few of them."""

    value: float
    se: float
    tasks: int


def mean(values: Tensor) -> Mean:
    """Mean of `values [task]`; one that is not finite makes it so too."""
    values = values.double()
    n = len(values)
    se = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    return Mean(float(values.mean()) if n else math.nan, se, n)


def mean_of_defined(values: Tensor) -> Mean:
    """Mean of those of `values [task]` that are not NaN; their number is `tasks`."""
    return mean(values[~values.isnan()])


def ratio(above: Tensor, below: Tensor) -> Mean:
    """Mean of `above [task]` over that of `below [task]`, with the delta method's standard error; NaN where `below` is
    nothing but zeros."""
    above, below = above.double(), below.double()
    under = float(below.mean())
    if under == 0:
        return Mean(math.nan, math.nan, len(below))
    value = float(above.mean()) / under
    return Mean(value, mean(above - value * below).se / abs(under), len(below))
