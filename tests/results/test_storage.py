"""Results come back from disk as they were, or the file is not there at all."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from interp import explaining, probes
from interp.files.writing import Outputs
from interp.results import provenance, storage
from tests.example_results import HOSTILE, example_results
from tests.examples import example


@pytest.mark.parametrize("name", [*probes.available(), *explaining.available()])
def test_result_loads_back_identical(name, tmp_path):
    ds = example(name, layers=3, heads=4, kv_heads=2, width=16, tokens=200)
    loaded = storage.load(storage.save(ds, tmp_path / "deep" / "result.nc"))
    xr.testing.assert_identical(loaded, ds)
    numeric = [key for key in ds.variables if ds[key].dtype.kind in "if"]
    assert all(loaded[key].dtype == ds[key].dtype for key in numeric)


def test_loaded_result_can_be_saved_again(tmp_path):
    ds = example_results(layers=2, heads=2, kv_heads=1, width=8, tokens=100)["text_sinks"]
    once = storage.load(storage.save(ds, tmp_path / "a.nc"))
    twice = storage.load(storage.save(once, tmp_path / "a.nc"))
    xr.testing.assert_identical(twice, ds)


def test_hostile_strings_survive_as_variable_coordinate_and_attribute(tmp_path):
    texts = np.array(HOSTILE, dtype=object)
    ds = xr.Dataset(
        {"scalar": ((), "\x00\n", {"note": "a\x00b"}), "grid": (("row", "column"), texts[:4].reshape(2, 2))},
        coords={"token": texts},
        attrs={"prompt": "".join(HOSTILE), "argument": "file\udcff.txt", "plain": "two\nlines", "backslash": r"C:\new"},
    )
    xr.testing.assert_identical(storage.load(storage.save(ds, tmp_path / "x.nc")), ds)


def test_ordinary_text_is_stored_as_it_is(tmp_path):
    path = storage.save(xr.Dataset({"word": ("token", np.array(["a\\b", "é"], dtype=object))}), tmp_path / "x.nc")
    with xr.open_dataset(path, engine="h5netcdf") as raw:
        assert raw["word"].values.tolist() == ["a\\b", "é"]
        assert "escaped" not in raw["word"].attrs


def test_escaped_text_is_marked_for_other_readers(tmp_path):
    path = storage.save(
        xr.Dataset({"word": ("token", np.array(["\x1b[31m\\n", "\n"], dtype=object))}), tmp_path / "x.nc"
    )
    with xr.open_dataset(path, engine="h5netcdf") as raw:
        assert raw["word"].values.tolist() == [r"\x1b[31m\\n", r"\n"]
        assert raw["word"].attrs["escaped"] == "backslash"


@given(st.text(st.characters()))
def test_escaping_is_reversible_and_leaves_no_control_character(text):
    escaped = storage.escape(text)
    assert storage.unescape(escaped) == text
    assert all(ord(c) >= 32 and not 0x7F <= ord(c) < 0xA0 and not 0xD800 <= ord(c) < 0xE000 for c in escaped)


def test_nested_and_boolean_attributes_become_json_and_numbers(tmp_path):
    ds = xr.Dataset(
        {"x": ("n", [1.0], {"flag": np.bool_(False)})}, attrs={"facts": {"window": None, "k": [1, 2]}, "causal": True}
    )
    loaded = storage.load(storage.save(ds, tmp_path / "x.nc"))
    assert json.loads(loaded.attrs["facts"]) == {"window": None, "k": [1, 2]}
    assert loaded.attrs["causal"] == 1
    assert loaded["x"].attrs["flag"] == 0
    assert ds.attrs["causal"] is True, "saving must not change the caller's dataset"


@pytest.mark.parametrize("value", [None, object(), 1j, [object()]])
def test_unstorable_attribute_is_named(value, tmp_path):
    with pytest.raises(storage.StorageError, match=r"attribute 'window' of variable 'x' is .* strings and numbers"):
        storage.save(xr.Dataset({"x": ("n", [1.0], {"window": value})}), tmp_path / "x.nc")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path):
    path = storage.save(xr.Dataset({"x": ("n", [1.0])}), tmp_path / "x.nc")
    before = path.read_bytes()

    def fails_halfway():
        with Outputs() as outputs:
            outputs.add(path, b"half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fails_halfway()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_refusal_of_the_disk_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.nc").mkdir()
    for path in (tmp_path / "file" / "x.nc", tmp_path / "folder.nc"):
        with pytest.raises(storage.StorageError, match=r"cannot write .*\.nc: \w+ .*\.$"):
            storage.save(xr.Dataset({"x": ("n", [1.0])}), path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.nc"}


def test_missing_and_damaged_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(storage.StorageError, match="there is no result file"):
        storage.load(tmp_path / "absent.nc")
    whole = storage.save(xr.Dataset({"x": ("n", np.arange(1000.0))}), tmp_path / "whole.nc").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not NetCDF at all"):
        (tmp_path / "cut.nc").write_bytes(content)
        with pytest.raises(storage.StorageError, match=r"cut\.nc is not a NetCDF result, or is cut short") as caught:
            storage.load(tmp_path / "cut.nc")
        assert "\n" not in str(caught.value)


def test_provenance_is_storable_and_names_this_run(tmp_path):
    facts = storage.provenance()
    assert facts["torch"] == importlib.metadata.version("torch")
    assert facts["threads"] == torch.get_num_threads()
    assert facts["device"] == "cpu"
    assert facts["time"].endswith("+00:00")
    assert facts["cpu"]
    loaded = storage.load(storage.save(xr.Dataset(attrs=facts), tmp_path / "x.nc"))
    assert loaded.attrs == facts


def test_commit_is_that_of_the_library_only(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "other.txt").write_text("somebody's repository")
    git("add", "other.txt")
    git("commit", "-m", "first")
    (tmp_path / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert "commit" not in storage.provenance(), "the library is installed in this repository, not tracked by it"
    git("add", "provenance.py")
    git("commit", "-m", "second")
    assert len(storage.provenance()["commit"]) == 12
    (tmp_path / "provenance.py").write_text("changed")
    assert storage.provenance()["commit"].endswith("-dirty")
