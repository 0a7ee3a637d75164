"""Every writer of the project on a disk that fills up: an error, and the file of before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.errors import StorageError
from interp.files.writing import Outputs
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.training import train
from interp.icl.studies import report as study_report
from interp.icl.tasks.regression import make_regression
from interp.report import write_markdown, write_report
from interp.results import storage
from interp.subjects.weight_cache import filled
from tests.example_results import example_results
from tests.files.faulty_disk import FaultyDisk
from tests.icl.studies.toy_study import ToyStudy

RUN = {"model": "m", "text": "t", "n_tokens": 20}
SINKS = {"text_sinks": example_results(layers=2, heads=2, kv_heads=1, width=8, tokens=20)["text_sinks"]}
NUMBERS = xr.Dataset({"x": ("t", np.random.default_rng(0).normal(size=8100))})


def regressor() -> AttentionRegressor:
    return AttentionRegressor(RegressorConfig(d_in=3, n_ctx=5), seed=0)


def learn(folder: Path, steps: int) -> None:
    """Some steps, whose state is kept after each."""
    draw = lambda batch, seed: make_regression(batch, N=5, d=3, seed=seed)  # noqa: E731
    train(regressor(), draw, steps, lr=1e-3, batch=4, every=1, checkpoint=folder / "run.checkpoint")


def cached(folder: Path) -> None:
    with filled(folder / "weights", {"by": "a test"}) as draft:
        (draft / "model.safetensors").write_bytes(b"x")


def watched(folder: Path) -> None:
    interp.icl.Trajectory(lambda _: NUMBERS, folder / "steps.nc")(1, None)


def studied(folder: Path) -> None:
    study = ToyStudy(seeds=1, steps=40)
    with Outputs() as outputs:
        study_report.write(study, study.run(folder, outputs=outputs), folder, outputs=outputs)


WRITERS = {
    "result": lambda folder: storage.save(NUMBERS, folder / "x.nc"),
    "report": lambda folder: write_report(SINKS, RUN, folder / "r.html"),
    "markdown": lambda folder: write_markdown(SINKS, RUN, folder / "r.md"),
    "intervention": lambda folder: interp.interventions.save(interp.ThinK(ratio=0.5), folder / "x.toml"),
    "model": lambda folder: regressor().save(folder / "m.safetensors"),
    "training": lambda folder: learn(folder, 2),
    "trajectory": watched,
    "study": studied,
    "weights": cached,
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("room", [0, 40])
@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_reported_written_that_is_not(name, room, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        disk = FaultyDisk(room=room).put_in(patch)
        with pytest.raises(StorageError, match=r"cannot write .*: No space left on device\."):
            WRITERS[name](tmp_path)
        assert disk.calls
    assert contents(tmp_path) == {}
    WRITERS[name](tmp_path)
    assert contents(tmp_path)


@pytest.mark.parametrize("name", ["result", "report", "markdown", "intervention", "model"])
def test_what_was_there_stays_whatever_there_is_room_for(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path)
    before = contents(tmp_path)
    size = sum(map(len, before.values()))
    for room in (1, size // 3, size // 2, size - 1):
        with monkeypatch.context() as patch:
            FaultyDisk(room=room).put_in(patch)
            with pytest.raises(StorageError, match="No space left"):
                WRITERS[name](tmp_path)
        assert contents(tmp_path) == before


def test_no_room_for_the_journal_is_a_full_disk_too(tmp_path, monkeypatch):
    """All files fit and only what says how they belong together does not: none of them appears."""
    size = sum(map(len, (WRITERS["markdown"](tmp_path), contents(tmp_path))[1].values()))
    before = contents(tmp_path)
    other = {"text_sinks": SINKS["text_sinks"].assign_attrs(title=SINKS["text_sinks"].attrs["title"][::-1])}
    FaultyDisk(room=size + 10).put_in(monkeypatch)
    with pytest.raises(StorageError, match="No space left"):
        write_markdown(other, RUN, tmp_path / "r.md")
    assert contents(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    storage.save(NUMBERS.isel(t=slice(1000)), small_disk / "x.nc")
    before = contents(small_disk)
    writers = [WRITERS["result"], WRITERS["report"], lambda folder: storage.save(NUMBERS, folder / "x.nc")]
    for write in writers:
        with pytest.raises(StorageError, match="No space left on device"):
            write(small_disk)
        assert contents(small_disk) == before
    assert storage.load(small_disk / "x.nc").equals(NUMBERS.isel(t=slice(1000)))


def test_shared_weights_are_written_once_and_read_back(tmp_path):
    """What safetensors refuses: two names of one weight."""
    from interp.icl.studies.parts import StudyParts

    def tied() -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    parts = StudyParts(tmp_path, "code")
    first, _ = parts.trained("m", {}, tied(), lambda *_: xr.Dataset())
    again, _ = parts.trained("m", {}, tied(), lambda *_: pytest.fail("trained again"))
    assert again[0].weight is again[1].weight
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
