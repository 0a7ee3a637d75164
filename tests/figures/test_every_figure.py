"""What holds for every figure on every shape of model: it draws, is labelled, small, and shows hostile text as text."""

from __future__ import annotations

import importlib
import json

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from interp import explaining, figures, probes
from interp.figures._need import FigureError
from tests.example_results import HOSTILE, example_results
from tests.examples import DEMO, example, run, stretched

SHAPES = {
    "demo": {},
    "smallest": {"layers": 1, "heads": 1, "kv_heads": 1, "width": 4, "tokens": 2},
    "odd": {"layers": 7, "heads": 10, "kv_heads": 5, "width": 24, "tokens": 63},
    "large": {"layers": 80, "heads": 64, "kv_heads": 8, "width": 128, "tokens": 3000},
}
FIGURES = figures.names()


def drawn_from(name: str) -> str:
    """What makes the result that a figure draws."""
    return importlib.import_module(f"interp.figures.{name}").RESULT


@pytest.fixture(scope="module", params=SHAPES)
def shape(request) -> dict[str, int]:
    return SHAPES[request.param]


@pytest.fixture(params=FIGURES)
def fig(request, shape) -> go.Figure:
    return getattr(figures, request.param)(example(drawn_from(request.param), **shape))


def test_every_axis_and_colour_bar_has_a_title(fig):
    layout = fig.layout.to_plotly_json()
    scenes = [layout[key] for key in layout if key.startswith("scene")]
    axes = [
        axis for part in (layout, *scenes) for key, axis in part.items() if key.startswith(("xaxis", "yaxis", "zaxis"))
    ]
    shared = [axis for axis in axes if axis.get("matches") or not axis.get("showticklabels", True)]
    assert axes
    assert all(axis.get("title", {}).get("text") for axis in axes if axis not in shared)
    if "coloraxis" in layout:
        assert layout["coloraxis"]["colorbar"]["title"]["text"]
    assert layout["title"]["text"]


def test_numbers_travel_as_arrays_and_the_figure_is_small(fig):
    text = fig.to_json()
    assert len(text) < 4_000_000
    for trace in json.loads(text)["data"]:
        for name, value in trace.items():
            if isinstance(value, list) and len(value) > 400:  # `base` of bars cannot be packed
                assert isinstance(np.array(value, dtype=object).flat[0], str), (
                    f"{name} of {trace['type']} is a list of numbers"
                )


def test_labels_do_not_crowd(fig):
    """At most one label in 13 pixels of height on vertical axes."""
    for key, axis in fig.layout.to_plotly_json().items():
        if key.startswith("yaxis") and "tickvals" in axis:
            assert len(axis["tickvals"]) <= max(1, (fig.layout.height - 140) / 13)


def test_hostile_text_has_no_markup_left(fig):
    for text in _strings(json.loads(fig.to_json())):
        for markup in ("<script", "<b>bold", "</text", "$x$", "\x00", "\x1b", "\u202e"):
            assert markup not in text


def test_hostile_text_is_shown_letter_by_letter():
    fig = figures.token_mass(
        example_results(layers=2, heads=2, kv_heads=1, width=8, tokens=8 * len(HOSTILE))["text_sinks"]
    )
    shown = set(fig.data[1].text)
    assert {
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        r"\x00",
        r"\x1b[31m",
        "&amp;amp;",
        r"\u202eevil",
        "🧑‍🔬",
        "漢字",
    } <= shown


@pytest.mark.parametrize("name", FIGURES)
def test_wrong_dataset_is_refused_by_name(name):
    said = (
        rf"figure {name} draws a result of the (probe|question|function) '\w+', which has .*; this dataset holds other"
    )
    with pytest.raises(FigureError, match=said):
        getattr(figures, name)(xr.Dataset({"other": ("layer", [1.0])}))


@pytest.mark.parametrize("name", FIGURES)
def test_results_of_several_texts_are_refused_with_the_way_out(name):
    ds = example(drawn_from(name), layers=2, heads=2, kv_heads=1, width=8, tokens=40)
    if "text" in ds.dims:  # it is about several texts, and draws them
        return
    several = xr.concat([ds, ds], dim="text")
    with pytest.raises(FigureError, match=r"this result holds 2: choose one with \.isel\(text=0\)"):
        getattr(figures, name)(several)
    getattr(figures, name)(several.isel(text=1))


RUN = sorted({*probes.available(), *probes.available("tasks"), *probes.available("images"), *explaining.available()})


@pytest.mark.parametrize("name", [name for name in FIGURES if drawn_from(name) in RUN])
def test_results_that_were_run_are_drawn_as_the_examples_are(name):
    """Examples by hand have what a tiny model's results have, and stretching them is no trouble."""
    for size in SHAPES.values():
        fig = getattr(figures, name)(stretched(run(drawn_from(name)), DEMO | size))
        test_every_axis_and_colour_bar_has_a_title(fig)
        test_numbers_travel_as_arrays_and_the_figure_is_small(fig)
        test_labels_do_not_crowd(fig)
        test_hostile_text_has_no_markup_left(fig)


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]
