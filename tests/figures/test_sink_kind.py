"""What becomes of sinks: shares with their limits, over all and by layer."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import xarray as xr

import interp
from tests.models import shared, tokenizer, tokens


@cache
def example() -> xr.Dataset:
    """What figures of `sink_kind` draw."""
    lens = interp.load(shared("llama"), tokenizer())
    return interp.sink_kind(lens, tokens(3, 24), kept=0)


def test_shares_and_limits_are_those_of_the_result():
    ds = example()
    figure = interp.figures.sink_kind(ds)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    for bar, kind in zip(bars, ("position", "content", "chance"), strict=True):
        mean, low, high = (100 * float(ds[f"{kind}_all_{of}"]) for of in ("mean", "low", "high"))
        assert bar.y[0] == pytest.approx(mean)
        assert bar.y[0] + bar.error_y.array[0] == pytest.approx(high)
        assert bar.y[0] - bar.error_y.arrayminus[0] == pytest.approx(low)
    lines = [trace for trace in figure.data if trace.type == "scatter" and trace.name]
    assert len(lines) == 3 * ds.sizes["transform"]
    np.testing.assert_allclose(lines[0].y, 100 * ds["position_mean"].isel(transform=0), rtol=1e-5)
    assert sum(bool(line.showlegend) for line in lines) == 3
    assert figure.layout.title.text.endswith("(3 texts)")


def test_one_input_has_no_limits_and_no_sinks_no_shares():
    lens = interp.load(shared("llama"), tokenizer())
    alone = interp.sink_kind(lens, tokens(1, 24), transforms=["roll"])
    figure = interp.figures.sink_kind(alone)
    assert all(trace.error_y.array is None for trace in figure.data if trace.type == "bar")
    assert not [trace for trace in figure.data if getattr(trace, "fill", None)]
    assert figure.layout.title.text.endswith("(1 text)")
    nothing = example().map(lambda one: xr.full_like(one, np.nan) if one.dtype.kind == "f" else one)
    assert interp.figures.sink_kind(nothing.assign_attrs(example().attrs)).data
