"""What a comparison says in words: nothing is called different without the corrected p, and nothing the same."""

from __future__ import annotations

from typing import Any

FEW_MOVED = 6
"""With fewer clusters in which anything differs at all, an interval is rough: by simulation it then errs to the wide
side, and may not exist."""


def probability(p: float) -> str:
    """'p = 0.031', 'p < 0.0001'."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def amount(value: float, units: str = "") -> str:
    """Three digits, with units."""
    return f"{value:.3g}{' ' * bool(units)}{units}"


def difference_told(row: Any) -> str:
    """The sentence of a row of `paired`, after Holm's correction."""
    method, baseline, units = str(row["method"]), str(row["baseline"]), str(row["units"])
    base = f"{row['items']:,} items in {row['clusters']:,} clusters"
    if row["se"] == 0:
        if row["difference"] == 0:
            return f"{method} and {baseline} score the same on every item ({base}).{_left_out(row)}"
        return (
            f"{method} minus {baseline} is exactly {amount(row['difference'], units)} on every item ({base}): nothing "
            f"says how much that would vary, and no test was made.{_left_out(row)}"
        )
    numbers = (
        f"{row['confidence']:.0%} interval {amount(row['low'])} to {amount(row['high'], units)} by {row['interval']}, "
        f"{probability(row['p_holm'])}{_corrected(row)}; {base}, design effect {row['design_effect']:.2g}"
    )
    if row["p_holm"] < 1 - row["confidence"]:
        said = f"{method} is {_word(row)} than {baseline} by {amount(abs(row['difference']), units)} ({numbers})."
    else:
        said = (
            f"No difference shown between {method} and {baseline}: {row['difference']:+.3g}{' ' * bool(units)}{units} "
            f"({numbers}). That is not to say that there is none: a true one of "
            f"{amount(row['detectable'], units)} would be found in 80% of such studies."
        )
    moved = int(row["clusters_moved"])
    few = f" Only {moved} of the clusters differ at all, which makes the interval rough." if moved < FEW_MOVED else ""
    return said + few + _left_out(row)


def _word(row: Any) -> str:
    up, better = row["difference"] > 0, row["better"]
    if better not in ("higher", "lower"):
        return "higher" if up else "lower"
    return "better" if up == (better == "higher") else "worse"


def _corrected(row: Any) -> str:
    size = int(row["family_size"])
    return f" after Holm's correction over {size} comparisons" if size > 1 else " (one comparison)"


def _left_out(row: Any) -> str:
    left = int(row["left_out"])
    return f" {left:,} item{'s' * (left != 1)} without a score of one of them left out." if left else ""
