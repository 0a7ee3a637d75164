"""Results of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp.errors import InterpError

if TYPE_CHECKING:
    import xarray as xr


def compare(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """One dataset with a `model` dimension from results of the same probe, by model name.

    Models may differ in depth and heads: dimensions are joined, and what a model does not have is NaN, or empty text.
    Only variables that all of them have are kept; the others are named in `attrs["left_out"]`.

    Raises InterpError for fewer than two results or results of different probes.

    Examples:
        >>> seen = interp.probe(lens, prompt, ["text_sinks"])["text_sinks"]
        >>> interp.compare({"one": seen, "other": seen}).sizes["model"]
        2
    """
    from interp.results.reading import read_off

    if len(results) < 2:
        raise InterpError(f"comparing takes at least two models' results, not {len(results)}.")
    with read_off("a comparison"):
        return _compared(results)


def _compared(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    from interp.results.many_texts import stack

    titles = {name: str(dataset.attrs.get("title", "")) for name, dataset in results.items()}
    if len(set(titles.values())) > 1:
        raise InterpError(f"these are results of different probes ({titles}); compare one probe at a time.")
    shared = set.intersection(*(set(map(str, d.data_vars)) for d in results.values()))
    left_out = sorted(set.union(*(set(map(str, d.data_vars)) for d in results.values())) - shared)
    joined = stack([d[sorted(shared)] for d in results.values()], "model").assign_coords(model=list(results))
    return joined.assign_attrs(left_out=", ".join(left_out))
