"""Whatever a result file holds: a dataset as it was saved, or one sentence, soon, and nothing else is touched."""

from __future__ import annotations

import random
import time
import warnings

import h5py
import numpy as np
import pytest
import xarray as xr

from interp.errors import InterpError, StorageError
from interp.files import apart
from interp.results import encoding, storage

RESULT = xr.Dataset(
    {"x": (("layer", "t"), np.random.default_rng(0).normal(size=(3, 40)), {"units": "1"}), "n": ("t", np.arange(40))},
    coords={"token": ("t", np.array([f"word {i}" for i in range(40)], dtype=object))},
    attrs={"title": "a result", "seconds": {"load": 1.5}},
)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Less patience than users have: one second of computing."""
    monkeypatch.setattr(apart, "SECONDS", 1)


def refused(content, path, match=""):
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(StorageError, match=match) as caught:
            storage.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(content, draw):
    """The content with some bytes flipped, cut out, doubled or put in."""
    damaged = bytearray(content)
    kind = draw.choice(["bit", "bytes", "cut", "hole", "double", "zeros"])
    place = draw.randrange(len(content))
    if kind == "bit":
        damaged[place] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        for _ in range(draw.randrange(1, 9)):
            damaged[draw.randrange(len(content))] = draw.randrange(256)
    elif kind == "cut":
        del damaged[place:]
    elif kind == "hole":
        del damaged[place : place + draw.randrange(1, 600)]
    elif kind == "double":
        damaged[place:place] = damaged[place : place + draw.randrange(1, 600)]
    else:
        damaged[place : place + 64] = bytes(len(damaged[place : place + 64]))
    return bytes(damaged)


def test_no_damaged_file_is_taken_for_a_result(tmp_path):
    content, draw = storage.as_bytes(RESULT), random.Random(0)
    damaged = [changed(content, draw) for _ in range(300)]
    seal = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in range(len(content) - 80, len(content))]
    cut = [content[:-n] for n in range(1, 90)]
    tried = [one for one in [*damaged, *seal[::4], *cut[::8]] if one != content]
    assert len(tried) > 300
    for one in tried:
        refused(one, tmp_path / "x.nc")


def attempt(content, path):
    """What becomes of a hostile file: "read" or "refused", and nothing else."""
    path.write_bytes(content)
    try:
        found = storage.load(path)
    except InterpError:
        return "refused"
    return "read" if isinstance(found, xr.Dataset) else "neither"


@pytest.mark.parametrize("count", [24, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_damaged_file_with_a_checksum_made_anew_is_read_or_refused(count, tmp_path):
    """Who can compute SHA-256 is no damage but an attack; nothing but a dataset or a sentence may come of it."""
    content, draw = encoding.encoded(RESULT), random.Random(count)
    began = time.monotonic()
    found = [attempt(storage._sealed(changed(content, draw)), tmp_path / "x.nc") for _ in range(count)]
    assert {"read", "refused"} == set(found)
    assert time.monotonic() - began < count * 3


def craft(tmp_path, make):
    path = tmp_path / "crafted.nc"
    with h5py.File(path, "w") as file:
        make(file)
    return path.read_bytes()


def external_link(file):
    file["x"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file):
    file["y"] = h5py.SoftLink("/x")


def external_storage(file):
    file.create_dataset("x", (64,), "u1", external=[("/etc/passwd", 0, 64)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (4,))
    file.create_virtual_dataset("x", layout)


def group(file):
    file.create_group("g")["x"] = np.zeros(3)


def compressed(file):
    file.create_dataset("x", data=np.zeros(100_000_000, "u1"), compression="gzip")


def never_written(file):
    file.create_dataset("x", (200_000_000,), "f8")


def compound(file):
    file.create_dataset("x", data=np.zeros(3, [("a", "f8"), ("b", "i4")]))


def object_attribute(file):
    file.create_dataset("x", data=np.zeros(3)).attrs["other"] = file.ref


HOSTILE = {
    external_link: "is a link",
    soft_link: "is a link",
    external_storage: "lies in other files",
    virtual: "lies in other files",
    group: "is no variable",
    compressed: "compressed or filtered",
    never_written: "says that it holds",
    compound: "neither numbers nor text",
    object_attribute: "neither numbers nor text",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("sealed", [False, True])
def test_what_we_never_write_is_refused_without_decoding_it(make, sealed, tmp_path):
    content = craft(tmp_path, make)
    assert "root:" not in refused(storage._sealed(content) if sealed else content, tmp_path / "x.nc", HOSTILE[make])


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("attributes_set_aside", "[" * 100_000), ("attributes_set_aside", "[1]"), ("coordinate_names", '["gone"]'),
     ("coordinate_names", "3"), ("escaped_attributes", 3.5)],
)  # fmt: skip
def test_hostile_words_about_the_file_are_refused(attribute, value, tmp_path, monkeypatch):
    content = encoding.encoded(RESULT)
    path = tmp_path / "x.nc"
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        file.attrs[attribute] = value
    content = storage._sealed(path.read_bytes())
    if attribute == "escaped_attributes":
        assert attempt(content, path) == "read"  # a number names no attribute
    else:
        refused(content, path, r"is not a NetCDF result, or is damaged: \w+")


def test_a_file_of_another_program_is_read_with_a_warning(tmp_path):
    RESULT.drop_attrs().to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    with pytest.warns(UserWarning, match="has no checksum"):
        found = storage.load(tmp_path / "x.nc")
    xr.testing.assert_equal(found, RESULT)
