"""Two results, before and after an edit, as one; what cannot be compared is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import interp
from interp.errors import InterpError
from tests.models import shared, tokenizer, tokens
from tests.probes.schema import check_result


def lens() -> interp.Lens:
    return interp.load(shared("llama"), tokenizer())


def read(seed: int = 1, name: str = "text_sinks") -> xr.Dataset:
    return interp.probe(lens(), tokens(1, 20, seed=seed)[0], name)[name]


def test_both_sides_are_as_they_were(tmp_path: Path) -> None:
    before, loaded = read(), lens()
    with loaded.apply(interp.Temperature(temperature=0.5)):
        after = interp.probe(loaded, tokens(1, 20, seed=1)[0], "text_sinks")["text_sinks"]
    both = interp.before_after(before, after)
    assert both["edited"].values.tolist() == ["before", "after"]
    assert set(both.data_vars) == set(before.data_vars)
    for name in before.data_vars:
        np.testing.assert_array_equal(both[name].sel(edited="before").values, before[name].values)
        np.testing.assert_array_equal(both[name].sel(edited="after").values, after[name].values)
    assert both.attrs["before"] == "[]"
    assert "temperature" in both.attrs["after"]
    assert "interventions" not in both.attrs
    check_result(both, tmp_path)


def test_what_is_no_pair_is_refused() -> None:
    before = read()
    for other, said in (
        (read(seed=2), "of different texts; read the same text with and without the edit"),
        (read(name="channel_imbalance"), "of different probes; run the same probe twice"),
        (before.assign_attrs(model="other"), "of different models; interp.compare puts those side by side"),
        (before.assign_attrs(pictures="[]"), "of different images"),
        (before.isel(layer=[0]), "differ in layer"),
        (before.expand_dims("text"), "after holds several texts; choose one"),
        (None, "takes two results"),
    ):
        with pytest.raises(InterpError, match=said):
            interp.before_after(before, other)
