"""Verdicts: what was expected, what was found, and which of the two words follows from the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.errors import InterpError

if TYPE_CHECKING:
    import xarray as xr

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
TOO_QUICK, NOT_FOUND = "not measured (quick)", "not measured"


@dataclass(frozen=True)
class Verdict:
    """One row of a study's table. Made by `near` or `between`, which compute `verdict` from the numbers."""

    claim: str
    """One sentence fragment: what was looked at, and where."""
    source: str
    """Where the expected value comes from: a paper and its figure, released code, or a closed form."""
    expected: str
    """The value and its tolerance, as printed in the table."""
    ours: float
    """What this run found; NaN where it did not look."""
    se: float
    """Standard error of `ours`, in the same unit; NaN where there is one value only."""
    verdict: str
    """`reproduced`, `not reproduced`, `not measured (quick)`, or `not measured` where there was nothing to measure."""

    @property
    def found(self) -> str:
        """`ours` with its standard error, for a table."""
        if math.isnan(self.ours):
            return "–"
        return f"{self.ours:.4g}" if math.isnan(self.se) else f"{self.ours:.4g} ± {self.se:.2g}"


def near(
    claim: str, source: str, expected: float, ours: float | xr.DataArray, *, within: float, measured: bool = True
) -> Verdict:
    """Reproduced if `ours` is within the fraction `within` of `expected`.

    `ours`: a number, or a DataArray of one value a seed (or a task), of which the mean is judged and the standard error
    told. `measured=False` marks a run that was too short to judge: the number is shown and not judged.
    """
    if expected == 0:
        raise InterpError("a fraction of 0 is no tolerance; use between(claim, source, ours, low=-x, high=x).")
    value, se = mean_and_se(ours)
    close = abs(value - expected) <= within * abs(expected)
    interval = f"{expected:.4g} ± {100 * within:.2g} %".replace(" ", "\u00a0")  # one word, for a narrow column
    return Verdict(claim, source, interval, value, se, _word(value, close, measured))


def between(
    claim: str,
    source: str,
    ours: float | xr.DataArray,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    measured: bool = True,
    expected: str = "",
) -> Verdict:
    """Reproduced if `low <= ours <= high`; `expected` replaces the printed interval where the paper says it in words.

    `ours` and `measured` are those of `near`.
    """
    value, se = mean_and_se(ours)
    return Verdict(
        claim, source, expected or _interval(low, high), value, se, _word(value, low <= value <= high, measured)
    )


def mean_and_se(values: float | xr.DataArray) -> tuple[float, float]:
    """Mean of all values and its standard error (standard deviation with n - 1, over the root of n; NaN for one value).

    Both are NaN for no values, and the mean is where one value is.
    """
    import numpy as np  # here, because the command line imports this module before it knows what it will run

    flat = np.asarray(values, dtype=float).ravel()
    if flat.size == 0:
        return math.nan, math.nan
    se = flat.std(ddof=1) / math.sqrt(flat.size) if flat.size > 1 else math.nan
    return float(flat.mean()), float(se)


def _word(value: float, holds: bool, measured: bool) -> str:
    if not measured:
        return TOO_QUICK
    if math.isnan(value):
        return NOT_FOUND
    return REPRODUCED if holds else NOT_REPRODUCED


def _interval(low: float, high: float) -> str:
    if math.isinf(low):
        return f"≤ {high:.4g}"
    return f"≥ {low:.4g}" if math.isinf(high) else f"{low:.4g} to {high:.4g}"
