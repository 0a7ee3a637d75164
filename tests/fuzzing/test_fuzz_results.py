"""Results in odd shapes: saved, compared, put into figures, reports and words, and read again."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

import interp
from interp import figures, probes
from interp.report.html import page
from interp.report.markdown import write_markdown
from interp.results import many_texts, storage
from tests.examples import example
from tests.figures.test_every_figure import drawn_from
from tests.fuzzing.drawing import Draw
from tests.fuzzing.trying import fuzz, inputs

SMALL = {"layers": 2, "heads": 2, "kv_heads": 1, "width": 8, "tokens": 9}
FIGURES = figures.names()
PROBES = sorted(probes.available())


@cache
def result(name: str) -> xr.Dataset:
    return example(name, **SMALL)


def changed_result(draw: Draw, ds: xr.Dataset) -> xr.Dataset:
    """A result in which one thing is not as it was."""
    ds = ds.copy(deep=True)
    names, dims, kind = sorted(map(str, ds.variables)), sorted(map(str, ds.dims)), draw.randrange(11)
    name, dim = draw.choice(names), draw.choice(dims)
    variable = ds.variables[name]
    if kind == 0:
        return ds.drop_vars(name)
    if kind == 1:
        return ds.isel({dim: draw.choice(([], [0], 0, slice(None, None, -1), [0, 0, 0]))})
    if kind == 2:
        return ds.rename({draw.choice((name, dim)): draw.choice(("other", "text", "model", "a b"))})
    if kind == 3 and variable.dtype.kind == "f":
        number = draw.choice((np.nan, np.inf, -np.inf, 0.0, -1.0, 1e300))
        values = variable.values.copy()
        values[... if draw.often(0.5) else tuple(draw.randrange(n) for n in values.shape)] = number
        return ds.assign({name: (variable.dims, values, variable.attrs)})
    if kind == 4 and variable.dtype.kind in "iu":
        values = variable.values.astype("i8")
        values = draw.choice((values * 0 - 1, values + 10**6, values * 0))
        return ds.assign({name: (variable.dims, values, variable.attrs)})
    if kind == 5:
        values = np.full(variable.shape, draw.choice(("a", "", "\x00<b>", None, "nan")), object)
        return ds.assign({name: (variable.dims, values, variable.attrs)})
    if kind == 6:
        kind_of_values = draw.choice(("f8", "i8", "?", "M8[ns]", "c16"))
        return ds.assign({name: (variable.dims, np.zeros(variable.shape, kind_of_values))})
    if kind == 7 and name not in dims:
        return ds.assign({name: ((), draw.choice((0, 1.5, "a", np.nan)))})
    if kind == 8 and ds.attrs:
        said = draw.choice(sorted(map(str, ds.attrs)))
        return ds.assign_attrs({said: draw.choice((None, 1, "", "a", "[", -1, 1e300, [], {}))})
    if kind == 9 and ds.attrs:
        return ds.drop_attrs(deep=draw.often(0.5))
    return ds.transpose(*reversed(dims), ...)


def told(ds: xr.Dataset) -> dict[str, Any]:
    return {str(name): (v.dims, v.shape, str(v.dtype)) for name, v in ds.variables.items()} | {"attrs": dict(ds.attrs)}


def drawn(draw: Draw) -> None:
    name = draw.choice(FIGURES)
    ds = changed_result(draw, result(drawn_from(name)))
    draw.trying(name, told(ds))
    figure = getattr(figures, name)(ds)
    assert isinstance(figure, go.Figure)
    figure.to_json()


@inputs(80)
def test_figures(count: int) -> None:
    fuzz("figures", count, drawn)


def said(draw: Draw) -> None:
    name = draw.choice(PROBES)
    ds = changed_result(draw, result(name))
    draw.trying(name, told(ds))
    found = probes.available()[name]().findings(ds)
    assert all(isinstance(sentence, str) for sentence in found)


@inputs(150)
def test_findings(count: int) -> None:
    fuzz("findings", count, said)


def reported(folder: Path) -> Callable[[Draw], None]:
    def attempt(draw: Draw) -> None:
        name = draw.choice(PROBES)
        ds = changed_result(draw, result(name))
        run = {name: draw.value() for name in ("model", "text", "n_tokens", "command", draw.word())}
        draw.trying(name, told(ds), run)
        if draw.often(0.1):
            page({name: ds}, run)
        else:
            for path in folder.iterdir():
                path.unlink()
            write_markdown({name: ds}, run, folder / "r.md")

    return attempt


@inputs(25)
def test_reports(count: int, tmp_path: Path) -> None:
    fuzz("reports", count, reported(tmp_path))


def saved(folder: Path) -> Callable[[Draw], None]:
    path = folder / "x.nc"
    few = result("logit_lens")[["lens_probability", "lens_top_token", "lens_rank"]]

    def attempt(draw: Draw) -> None:
        ds = changed_result(draw, few)
        ds.attrs |= {draw.word(): draw.value()} if draw.often(0.5) else {}
        where: Any = path if draw.often(0.9) else folder / draw.word()[:20].replace("/", "")
        draw.trying(told(ds), where)
        if not str(where).startswith(str(folder) + "/"):
            return
        storage.save(ds, where)
        again = storage.load(where)
        where.unlink()
        for name, variable in ds.variables.items():
            assert np.array_equal(again[name].values, variable.values) or variable.dtype.kind in "Ofc", name

    return attempt


@inputs(25)
def test_saving(count: int, tmp_path: Path) -> None:
    fuzz("saving", count, saved(tmp_path))


def gathered(draw: Draw) -> None:
    name = draw.choice(PROBES)
    one, other = (changed_result(draw, result(draw.choice((name, name, draw.choice(PROBES))))) for _ in range(2))
    kind = draw.choice(("compare", "one", "single"))
    draw.trying(kind, told(one), told(other))
    if kind == "compare":
        interp.compare({draw.word(): one, draw.word(): other})
    elif kind == "one":
        many_texts.one(one, draw.small())
    else:
        many_texts.single(one)


@inputs(100)
def test_several(count: int) -> None:
    fuzz("several results", count, gathered)
