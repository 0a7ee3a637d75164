"""Verdicts follow from the numbers, and from nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from interp.errors import InterpError
from interp.icl.studies import between, near
from interp.icl.studies.verdicts import NOT_FOUND, NOT_REPRODUCED, REPRODUCED, TOO_QUICK, mean_and_se

number = st.floats(-1e3, 1e3).filter(lambda x: abs(x) > 1e-3)


@given(number, st.floats(0.001, 0.5), st.floats(0, 0.99))
def test_near_accepts_what_lies_within_and_refuses_what_does_not(expected, within, share):
    inside, outside = expected * (1 + share * within), expected * (1 + (2 - share) * within)
    assert near("", "", expected, inside, within=within).verdict == REPRODUCED
    assert near("", "", expected, outside, within=within).verdict == NOT_REPRODUCED


@given(number, number, number)
def test_between_is_the_interval(a, b, ours):
    low, high = sorted((a, b))
    assert (between("", "", ours, low=low, high=high).verdict == REPRODUCED) == (low <= ours <= high)
    assert (between("", "", ours, low=low).verdict == REPRODUCED) == (ours >= low)
    assert (between("", "", ours, high=high).verdict == REPRODUCED) == (ours <= high)


def test_what_was_not_measured_is_not_judged():
    assert near("", "", 1.0, 1.0, within=0.1, measured=False).verdict == TOO_QUICK
    for nothing in (math.nan, xr.DataArray(np.zeros(0))):
        assert near("", "", 1.0, nothing, within=0.1).verdict == NOT_FOUND
    assert between("", "", math.nan, low=0).found == "–"


def test_mean_and_standard_error_over_seeds():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    mean, se = mean_and_se(xr.DataArray(values, dims="seed"))
    assert mean == 3.5
    assert se == pytest.approx(stats.sem(values), rel=1e-12)
    assert math.isnan(mean_and_se(2.0)[1])
    assert near("", "", 3.5, xr.DataArray(values), within=0.01).found == "3.5 ± 1.3"


def test_a_fraction_of_zero_is_refused():
    with pytest.raises(InterpError, match="use between"):
        near("", "", 0.0, 0.1, within=0.1)
