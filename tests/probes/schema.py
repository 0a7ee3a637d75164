"""What every probe's result owes to those who read it."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from interp.results.storage import load, save


def check_result(ds: xr.Dataset, folder: Path) -> None:
    """Self-describing, only plain attributes, and the same after a trip through a file."""
    for owner in (ds, *ds.data_vars.values()):
        assert all(type(value) in (str, int, float) for value in owner.attrs.values()), owner.attrs
    assert ds.attrs["title"]
    assert ds.attrs["description"]
    for name, variable in ds.data_vars.items():
        assert variable.attrs["units"], name
        assert variable.attrs["description"], name
    xr.testing.assert_identical(load(save(ds, folder / "result.nc")), ds)
