"""How large a true difference would have been found: the minimum detectable effect (Bloom, Evaluation Review 19:547,
1995), for a mean whose items come in clusters."""

from __future__ import annotations

import numpy as np

from interp.errors import InterpError

POWER = 0.8


def detectable(se: float, df: float, alpha: float = 0.05, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test at `alpha` finds with probability `power`.

    se, df: of a mean of differences (`ClusteredMean`, or a row of `paired`): the spread that was found, never the
        difference that was found, which would say nothing but the p again.
    alpha: after the correction for several comparisons, if there is one: 0.05 / k in a family of k.

    To plan for m times as many clusters of the same kind, pass se / sqrt(m) and df * m. NaN where nothing varies.
    Raises InterpError for an alpha or a power outside (0, 1).

    Examples:
        >>> from interp.studies import statistics
        >>> round(statistics.detectable(se=0.02, df=49), 3)
        0.057
    """
    from scipy import special, stats

    if not 0 < alpha < power < 1:
        raise InterpError(f"alpha and power lie between 0 and 1, alpha below power; found {alpha} and {power}.")
    if not (se > 0 and df > 0):
        return np.nan
    # the far tail is left out: it holds less than alpha / 2, and nothing to speak of where a difference is detectable
    return float(special.nctdtrinc(df, 1 - power, stats.t.ppf(1 - alpha / 2, df))) * se
