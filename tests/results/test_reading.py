"""Whoever reads a result says so in a sentence where a dataset is none, and keeps the cause."""

from __future__ import annotations

import pytest
import xarray as xr

import interp
from interp import explaining, figures, probes
from interp.errors import InterpError
from interp.report.html import page
from interp.results.many_texts import single
from interp.results.reading import ResultError, read_off
from tests.examples import example

SMALL = {"layers": 2, "heads": 2, "kv_heads": 1, "width": 8, "tokens": 9}
OTHER = xr.Dataset({"other": ("layer", [1.0])})


@pytest.mark.parametrize("name", [*probes.available(), *explaining.available()])
def test_findings_of_another_dataset(name: str) -> None:
    known = {**probes.available(), **explaining.available()}
    with pytest.raises(ResultError, match=f"the findings of {name} cannot be read off this dataset") as caught:
        known[name]().findings(OTHER)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, Exception)


def test_a_figure_of_a_result_that_lost_a_dimension() -> None:
    ds = example("text_sinks", **SMALL)
    with pytest.raises(InterpError, match="figure sink_map cannot be read off this dataset"):
        figures.sink_map(ds.isel(layer=0))
    assert all(name == figure.__name__ for name, figure in figures.figures_of("text_sinks").items())
    assert figures.sink_map is figures.figures_of("text_sinks")["sink_map"]


def test_reports_and_comparisons() -> None:
    ds = example("text_sinks", **SMALL)
    with pytest.raises(InterpError, match="cannot be read off this dataset"):
        page({"text_sinks": ds.drop_vars("sink_rate")}, {})
    with pytest.raises(InterpError, match="a report cannot be read off"):
        page({"text_sinks": ds}, {"n_tokens": "many"})
    with pytest.raises(InterpError, match="a comparison cannot be read off"):
        interp.compare({"a": ds, "b": xr.concat([ds, ds.isel(layer=[0])], "layer")})  # a label twice
    with pytest.raises(InterpError, match="the result of one text cannot be read off"):
        single(ds.assign_coords(text="a"))


def test_what_is_ours_or_no_error_of_reading_passes() -> None:
    for error in (InterpError("as it is"), KeyboardInterrupt(), MemoryError(), ResultError("this one")):
        with pytest.raises(type(error)) as caught, read_off("a thing"):
            raise error
        assert caught.value is error
