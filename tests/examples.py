"""A result of each kind that some figure draws: written by hand where tests plant numbers, run and stretched otherwise.

A new probe or question needs no example: it is run on a tiny model, and its result stretched to the shapes that figures
are tried on, with hostile token text. Whatever else a figure draws, `test_RESULT.py` in `tests/figures` gives an
`example()` of.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import torch
import xarray as xr

import interp
from interp import explaining, probes
from interp.results.many_texts import POSITIONS
from tests import vision_models as seeing_models
from tests.authors import said
from tests.example_results import example_results, example_text
from tests.example_sides import example_sides
from tests.explaining.example_answers import example_answers
from tests.icl.example_measurements import example_measurements
from tests.models import shared, tokenizer, tokens

LENGTHS = {"layer": "layers", "head": "heads", "kv_head": "kv_heads", "channel": "width", "token": "tokens"}
"""Dimensions of results and what `example_results` calls how long they are; others stay as the tiny model has them."""
DEMO = {"layers": 30, "heads": 9, "kv_heads": 3, "width": 64, "tokens": 1024}
KINDS = ("modality", "view")
"""What says of which kind a token of a text with images is, in words of ours."""
WORDS = 24 * 500  # hostile words that differ, a whole number of times all of them
MOST = 20_000_000  # numbers in a variable; the layers are fewer where there would be more


def example(result: str, **shape: int) -> xr.Dataset:
    """The result called `result` of a model and text of this shape: that of the demo model, unless said otherwise."""
    by_hand = _written(**shape)
    return by_hand[result] if result in by_hand else stretched(run(result), DEMO | shape)


@lru_cache(maxsize=1)  # the largest takes a few hundred MB
def _written(**shape: int) -> dict[str, xr.Dataset]:
    return example_results(**shape) | example_answers(**shape) | example_measurements(**shape) | example_sides(**shape)


@cache
def run(result: str) -> xr.Dataset:
    """A result of tiny models, whatever makes it."""
    if result in probes.available():
        return interp.probe(interp.load(shared("llama"), tokenizer()), tokens(1, 40)[0], result)[result]
    if result in probes.available("images"):
        lens = interp.Lens(*seeing_models.shared("llava"))
        return interp.probe(lens, "w1 <image> w2 w3", result, images=seeing_models.picture())[result]
    if result in probes.available("tasks"):
        tasks = interp.icl.make_regression(40, 8, 4)
        model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=4, n_ctx=8))
        return interp.probe(interp.icl.construct_gd(model, 1.0), tasks, result)[result]
    if result in explaining.available():
        policy = interp.RandomTokens(budget=0.5) | interp.ThinK(window=8, recent=4)
        lens = interp.load(shared("llama"), tokenizer())
        with torch.no_grad():
            return interp.explain(lens, policy, tokens(1, 40), tokens(1, 9, seed=5), result)[result]
    given = said("figures", result, "example", None)
    assert given is not None, (
        f"a figure draws a result of {result!r}, which is no probe and no question; let `example()` in "
        f"tests/figures/test_{result}.py give one"
    )
    return given()


def stretched(ds: xr.Dataset, shape: dict[str, int]) -> xr.Dataset:
    """The result repeated or cut along its dimensions to another shape, with hostile text at positions of the text."""
    wanted = {dim: shape[length] for dim, length in LENGTHS.items() if dim in ds.dims}
    wanted |= {dim: wanted[same] for dim in ds.dims for same in wanted if _of_the_same(str(dim), same, ds)}
    sizes = {**ds.sizes, **wanted}
    largest = max(int(np.prod([sizes[dim] for dim in v.dims])) for v in ds.data_vars.values())
    if largest > MOST and "layer" in wanted:
        wanted["layer"] = max(1, wanted["layer"] * MOST // largest)
    ds = ds.isel({dim: np.arange(n) % ds.sizes[dim] for dim, n in wanted.items()})
    ds = ds.assign_coords({dim: np.arange(n) for dim, n in wanted.items() if dim in ds.coords}).copy(deep=True)
    for name, variable in ds.variables.items():
        if name in KINDS:
            continue
        of_text = set(variable.dims) & set(POSITIONS) or variable.attrs.get("units") == "text"
        if variable.dtype.kind in "OUST" and of_text:
            words = np.array(example_text(8 * min(variable.size, WORDS))[::8], dtype=object)
            ds[name] = (variable.dims, np.resize(words, variable.shape), variable.attrs)
    return ds


def _of_the_same(dim: str, same: str, ds: xr.Dataset) -> bool:
    """Whether `dim` counts the things that `same` counts, a second time: other_head and kv_head."""
    return dim.startswith("other_") and same.endswith(dim[6:]) and ds.sizes[dim] == ds.sizes[same]
