"""Probe results of the text at hand, shared by pages and tabs."""

from __future__ import annotations

from typing import Any

import xarray as xr

from interp_explorer import subject, view, waiting
from interp_explorer.subject import Reading


def probes() -> list[Any]:
    """All probes of texts, with their default parameters."""
    from interp.probes import resolve

    return resolve(None)


def measure(read: Reading, wanted: list[Any]) -> dict[str, xr.Dataset]:
    """Results by the probes' names, all read in one pass the first time."""
    lens, tokens = subject.lens(read), subject.row(read)

    def work(progress: Any) -> dict[str, xr.Dataset]:
        import interp

        results = interp.probe(lens, tokens[0], wanted, progress=progress)
        for dataset in results.values():
            dataset.attrs |= {"text": read.about}
        return results

    n = int(tokens.shape[1])
    key = ("probes", *read.key, *map(repr, wanted))
    what = f"reading {n:,} tokens with {', '.join(p.name for p in wanted)}"
    results = waiting.done(key, what, work, own=read.first and wanted == probes())
    view.probed(read, wanted, results)
    return results


def result(read: Reading, probe: Any) -> xr.Dataset:
    """One probe's result; with default parameters it comes from the one pass over all probes."""
    everything = probes()
    if probe in everything:
        return measure(read, everything)[probe.name]
    return measure(read, [probe])[probe.name]
