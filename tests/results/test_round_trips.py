"""Values come back from disk as they were, whatever variables and attributes are called."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import StorageError
from interp.results import storage
from interp.results.checksum import checksum

NAMES = [
    "scale_factor", "add_offset", "missing_value", "_FillValue", "_Unsigned", "units", "dtype", "coordinates",
    "calendar", "NAME", "CLASS", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_NCProperties", "escaped",
    "escaped_attributes", "attributes_set_aside", "coordinate_names", "stored_by", "grid_mapping", "bounds", "a name",
    "é", "", "a/b", "title",
]  # fmt: skip
VALUES = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.text(st.characters(), max_size=20), st.booleans(),
    st.sampled_from(["days since 2000-01-01", "seconds", "backslash", "bool", "datetime64[ns]", "t x", "[]", "{}"]),
)  # fmt: skip
ATTRS = st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(st.characters(), max_size=8)), VALUES, max_size=4)
DTYPES = ["f8", "f4", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8", ">f8", "?", "M8[ns]", "m8[ns]", "O"]


@st.composite
def datasets(draw):
    sizes = {name: draw(st.integers(0, 3)) for name in ("t", "layer")}
    variables = {}
    for name in draw(st.lists(st.sampled_from(["x", "é y", "t", "layer", "CLASS", "coordinates"]), unique=True)):
        dims = (name,) if name in sizes else tuple(draw(st.permutations(["t", "layer"])))[: draw(st.integers(0, 2))]
        shape = [sizes[dim] for dim in dims]
        count, kind = int(np.prod(shape)), draw(st.sampled_from(DTYPES))
        if kind == "O":
            texts = draw(st.lists(st.text(st.characters(), max_size=8), min_size=count, max_size=count))
            values = np.array(texts, dtype=object)
        else:
            raw = draw(st.binary(min_size=8 * count, max_size=8 * count))
            values = np.frombuffer(raw, "i8").view("u1")[:count] % 2 == 1 if kind == "?" else None
            values = np.frombuffer(raw, np.dtype(kind))[:count] if values is None else values
        variables[name] = (dims, values.reshape(shape), draw(ATTRS))
    ds = xr.Dataset(variables, attrs=draw(ATTRS))
    return ds.set_coords([name for name in variables if name not in sizes and draw(st.booleans())])


@settings(deadline=None, max_examples=60)
@given(ds=datasets())
def test_values_come_back_whatever_things_are_called(ds, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round.nc"
    found = storage.load(storage.save(ds, path))
    xr.testing.assert_identical(found, ds)
    assert checksum(found) == checksum(ds)
    for name, variable in ds.variables.items():
        if variable.dtype.kind in "iufbmM":
            assert found[name].dtype == variable.dtype
            assert found[name].values.tobytes() == variable.values.tobytes()


def test_other_readers_see_the_same_numbers(tmp_path):
    attrs = {
        "scale_factor": 7.0,
        "add_offset": 1.0,
        "_FillValue": 2.0,
        "missing_value": 1.0,
        "units": "days since 2000",
    }
    ds = xr.Dataset({"x": ("t", np.arange(4.0), attrs)}, coords={"label": ("t", np.arange(4))})
    with xr.open_dataset(storage.save(ds, tmp_path / "x.nc"), engine="h5netcdf") as found:
        np.testing.assert_array_equal(found["x"], ds["x"])
        assert "label" in found.coords


@pytest.mark.parametrize(
    ("ds", "why"),
    [(xr.Dataset({"a/b": 1.0}), "'a/b' cannot be the name"), (xr.Dataset({3: 1.0}), "3 cannot be the name"),
     (xr.Dataset({"x": 1j}), "'x' has the type complex128"), (xr.Dataset({"x": np.float16(1)}), "type float16")],
)  # fmt: skip
def test_what_netcdf_cannot_hold_is_refused_when_it_is_saved(ds, why, tmp_path):
    with pytest.raises(StorageError, match=why):
        storage.save(ds, tmp_path / "x.nc")
    assert not list(tmp_path.iterdir())


def test_a_checksum_is_of_every_value_and_word():
    ds = xr.Dataset({"x": ("t", [1.0, 2.0], {"units": "1"})}, {"t": ["a", "b"]}, {"title": "one", "seconds": [1, 2]})
    changed = [ds.assign(x=ds.x * 7), ds.assign(x=ds.x.astype("f4")), ds.assign_coords(t=["a", "c"]), ds.rename(x="y"),
               ds.assign_attrs(title="two"), ds.assign(x=ds.x.assign_attrs(units="2"))]  # fmt: skip
    assert len({checksum(one) for one in [ds, *changed]}) == 1 + len(changed)
    assert checksum(ds.assign_attrs(own="x"), leave_out="own") == checksum(ds)
