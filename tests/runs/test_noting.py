"""Warnings of each thread go to its own account, and the process is as before."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from interp.runs.noting import noting


def test_threads_that_overlap_in_any_order() -> None:
    filters, show = list(warnings.filters), warnings.showwarning
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> list[str]:
        with noting() as notes:
            first_in.set()
            second_in.wait(60)
            warnings.warn("of the first", stacklevel=1)
        first_out.set()
        return notes

    def second() -> list[str]:
        first_in.wait(60)
        with noting() as notes:
            second_in.set()
            first_out.wait(60)
            warnings.warn("of the second", stacklevel=1)
            warnings.warn("of the second", stacklevel=1)
        return notes

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(first), pool.submit(second)]
        assert [job.result(60) for job in jobs] == [["of the first"], ["of the second"]]
    assert warnings.filters == filters
    assert warnings.showwarning is show


def test_other_threads_are_warned_as_ever() -> None:
    with pytest.warns(UserWarning, match="elsewhere"), noting() as notes, ThreadPoolExecutor(1) as pool:
        pool.submit(warnings.warn, "elsewhere").result(60)
    assert notes == []


def test_an_inner_account_and_an_exception() -> None:
    show = warnings.showwarning
    with noting() as outer:
        with pytest.raises(KeyError), noting():
            raise KeyError
        with noting() as inner:
            warnings.warn("inside", stacklevel=1)
            warnings.warn("not for users", RuntimeWarning, stacklevel=1)
        warnings.warn("outside", stacklevel=1)
    assert (outer, inner) == (["outside"], ["inside"])
    assert warnings.showwarning is show
