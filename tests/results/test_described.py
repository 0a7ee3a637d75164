"""One way to make a described dataset, which refuses what is not described."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.results.described import Row, described, with_error

NAMES = st.sampled_from(["layer", "head", "token", "kv_head"])
WORDS = st.text("abc /²", min_size=1, max_size=8)


@given(st.lists(NAMES, unique=True, max_size=3), st.sampled_from(["float32", "int8", "int64", "object"]), WORDS, WORDS)
def test_it_is_the_dataset_that_xarray_makes_of_the_same(dims, dtype, units, description):
    values = np.arange(2 ** len(dims)).reshape([2] * len(dims)).astype(dtype)
    coords, attrs = {dim: [0, 1] for dim in dims}, {"title": "t", "n_tokens": 3}
    made = described({"x": (tuple(dims), values, units, description)}, coords, attrs)
    expected = {"x": (tuple(dims), values, {"units": units, "description": description})}
    assert made.identical(xr.Dataset(expected, coords, attrs))
    assert made["x"].dtype == dtype


@pytest.mark.parametrize(
    ("dims", "values", "array"),
    [
        ("step", [1.5, 2.5], np.array([1.5, 2.5])),
        ((), 3.0, np.float64(3.0)),
        ("step", torch.tensor([1, 2], dtype=torch.int32), np.array([1, 2], "int32")),
        (("step",), torch.tensor([1.0, 2.0], requires_grad=True), np.array([1.0, 2.0], "float32")),
        ("step", np.array(["a", "b"], dtype=object), np.array(["a", "b"], dtype=object)),
    ],
)
def test_values_may_be_numbers_lists_arrays_and_tensors(dims, values, array):
    made = described({"x": Row(dims, values, "1", "something")})["x"]
    assert made.dtype == array.dtype
    np.testing.assert_array_equal(made.values, array)


def test_more_attributes_lie_beside_units_and_description():
    made = described({"x": ((), 1.0, "1", "something", {"samples": 4}), "y": ((), 2.0, "token", "another")})
    assert made["x"].attrs == {"units": "1", "description": "something", "samples": 4}
    assert made["y"].attrs == {"units": "token", "description": "another"}


@pytest.mark.parametrize(
    ("row", "lacking"),
    [
        (((), 1.0), "no units and no description"),
        (((), 1.0, "1"), "no description"),
        (((), 1.0, "1", ""), "no description"),
        (((), 1.0, "", "something"), "no units"),
        (Row((), 1.0, description="something"), "no units"),
    ],
)
def test_what_is_not_described_is_refused_in_one_sentence(row, lacking):
    with pytest.raises(InterpError, match=rf"the variable 'bare' has {lacking}; .*\.$") as caught:
        described({"x": ((), 1.0, "1", "something"), "bare": row})
    assert "\n" not in str(caught.value)


def test_a_standard_error_has_the_units_of_what_it_is_of():
    rows = with_error(
        "loss", Row(("step",), [1.0, 2.0], "nats", "of the batch", {"samples": 4}), [0.1, 0.2], " over texts"
    )
    made = described(rows)
    assert list(made.data_vars) == ["loss", "loss_se"]
    assert made["loss_se"].values.tolist() == [0.1, 0.2]
    assert made["loss_se"].attrs == {"units": "nats", "description": "standard error of loss over texts", "samples": 4}
    assert made["loss"].attrs["description"] == "of the batch"
