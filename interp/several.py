"""Results of several texts as one: a `text` dimension, means, and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy import stats

ALONG_TEXT = {"token", "token_bin", "query", "key"}  # dimensions that mean something else in every text
RESAMPLES = 1000
CONFIDENCE = 0.95


def gather(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """One dataset with a `text` dimension from one dataset per text.

    Shorter texts are filled with NaN (or empty strings) along positions. Every numeric variable without a position
    dimension gets `<name>_mean` and, from two texts on, `<name>_low` and `<name>_high`: the limits of the 95 %
    percentile bootstrap over texts (1,000 resamples, fixed seed).
    """
    joined = xr.concat(
        [indexed(dataset) for dataset in datasets],
        dim="text",
        join="outer",
        data_vars="all",
        coords="minimal",
        compat="override",
        combine_attrs="override",
    )
    joined = joined.assign_coords(text=np.arange(len(datasets)))
    joined.attrs["n_tokens"] = max(int(d.attrs["n_tokens"]) for d in datasets)
    joined.attrs["texts"] = len(datasets)
    for name, variable in list(joined.data_vars.items()):
        if "text" in variable.dims and variable.dtype.kind in "fiu" and not ALONG_TEXT & set(variable.dims):
            joined = joined.assign(_summary(str(name), variable))
    return joined


def indexed(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with a counting coordinate on every dimension that has none, so that shorter ones can be aligned."""
    bare = {dim: np.arange(size) for dim, size in dataset.sizes.items() if dim not in dataset.indexes}
    return dataset.assign_coords(bare)


def _summary(name: str, variable: xr.DataArray) -> dict[str, xr.DataArray]:
    units = variable.attrs.get("units", "1")
    mean = variable.mean("text").assign_attrs(units=units, description=f"mean over texts of {name}")
    summary = {f"{name}_mean": mean}
    if variable.sizes["text"] > 1:
        values = variable.transpose("text", ...).values.astype(np.float64)
        interval = stats.bootstrap(
            (values,), np.nanmean, axis=0, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile",
            batch=50, rng=np.random.default_rng(0), vectorized=True,
        ).confidence_interval  # fmt: skip
        for side, limit in (("low", interval.low), ("high", interval.high)):
            attrs = {
                "units": units,
                "description": f"{side} limit of the {CONFIDENCE:.0%} bootstrap interval of the mean of {name}",
            }
            summary[f"{name}_{side}"] = xr.DataArray(limit, dims=mean.dims, coords=mean.coords, attrs=attrs)
    return summary
