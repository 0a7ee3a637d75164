"""A killed study continues, a finished one is read, and a folder keeps to one setting."""

from __future__ import annotations

import json

import pytest
import torch
import xarray as xr

from interp.errors import InterpError
from interp.results import storage
from tests.icl.studies.toy_study import ToyStudy


def test_a_killed_study_continues_with_the_part_that_is_missing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ToyStudy(seeds=3, die_at=1).run(tmp_path)
    parts = tmp_path / "parts"
    assert sorted(p.name for p in parts.iterdir()) == ["seed-0.nc", "seed-0.safetensors", "seed-1.checkpoint"]
    assert not (tmp_path / "result.nc").exists()
    written = (parts / "seed-0.safetensors").stat().st_mtime_ns

    ds = ToyStudy(seeds=3).run(tmp_path)
    assert (parts / "seed-0.safetensors").stat().st_mtime_ns == written, "seed 0 is not trained again"
    assert not list(parts.glob("*.checkpoint"))
    torch.testing.assert_close(torch.tensor(ds["weight"].values), torch.full((3,), 3.0, dtype=torch.float64))


def test_a_second_call_reads_the_same_numbers(tmp_path):
    first = ToyStudy().run(tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()}
    again = ToyStudy().run(tmp_path)
    assert first["weight"].identical(again["weight"])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()} == stamps


def test_other_settings_in_the_same_folder_are_refused_in_one_sentence(tmp_path):
    ToyStudy().run(tmp_path)
    with pytest.raises(InterpError, match=r"was made with seeds=2, and seeds=3 is asked for; choose another folder"):
        ToyStudy(seeds=3).run(tmp_path)


def test_a_part_of_other_settings_is_refused(tmp_path):
    ToyStudy().run(tmp_path)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "steps": 60}))
    with pytest.raises(InterpError, match=r"seed-0.nc was made with steps=50, and steps=60"):
        ToyStudy(steps=60).run(tmp_path)


@pytest.mark.parametrize("text", ["not json", "[1]", "3"])
def test_a_folder_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InterpError, match="choose another folder"):
        ToyStudy().run(tmp_path)


def test_a_file_where_parts_go_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "parts").write_text("mine")
    with pytest.raises(InterpError, match="parts is no folder"):
        ToyStudy(die_at=0).run(tmp_path)


def test_a_name_that_no_folder_can_have_is_refused(tmp_path):
    with pytest.raises(InterpError, match=r"cannot be a folder: .*; choose another folder"):
        ToyStudy().run(tmp_path / ("a" * 300))


def spoil(path, how):
    if how == "missing":
        path.unlink()
    elif how == "garbage":
        path.write_bytes(b"garbage")
    else:
        storage.save(xr.Dataset({"mine": 1.0}), path)


@pytest.mark.parametrize(
    ("file", "how"),
    [("seed-1.nc", "garbage"), ("seed-1.nc", "other"), ("seed-1.safetensors", "garbage"),
     ("seed-1.safetensors", "missing")],
)  # fmt: skip
def test_a_damaged_part_is_named_and_made_again_when_it_is_removed(tmp_path, file, how):
    first = ToyStudy().run(tmp_path)
    spoil(tmp_path / "parts" / file, how)
    with pytest.raises(InterpError, match=rf"{file} is no finished part .* remove \S*seed-1.nc, and it is made again"):
        ToyStudy().run(tmp_path)
    (tmp_path / "parts" / "seed-1.nc").unlink()
    assert ToyStudy().run(tmp_path)["weight"].identical(first["weight"])


def test_a_training_that_was_interrupted_is_said_to_be_timed_in_part(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ToyStudy(die_at=1).run(tmp_path)
    for _ in range(2):  # the part remembers it
        assert ToyStudy().run(tmp_path).attrs["interrupted"].startswith("seed-1: timed only")
    assert "interrupted" not in ToyStudy().run(tmp_path / "straight").attrs


def test_the_result_says_how_it_was_made(tmp_path):
    ToyStudy().run(tmp_path)
    stored = storage.load(tmp_path / "result.nc")
    assert json.loads(stored.attrs["settings"]) == {"quick": False, "seeds": 2, "steps": 50}
    assert set(json.loads(stored.attrs["seconds"])) == {"seed-0", "seed-1", "this call"}
    assert {"torch", "cpu", "time", "threads"} <= set(stored.attrs)


def test_a_result_tells_which_study_made_it(tmp_path):
    from interp.icl import studies
    from interp.results.storage import load, save

    study = studies.make("optimal", quick=True)
    ds = xr.Dataset(attrs={"study": study.name, "settings": study.settings()})
    assert studies.of_result(ds) == study
    assert studies.of_result(load(save(ds, tmp_path / "result.nc"))) == study
    with pytest.raises(InterpError, match="no result of a study"):
        studies.of_result(xr.Dataset())
    for said in ("{", "[]", "3", "[" * 100_000):
        with pytest.raises(InterpError, match="does not say which settings"):
            studies.of_result(ds.assign_attrs(settings=said))
