"""A cached folder is whole or absent: damage of every kind is seen, and no failure leaves anything behind."""

import json
import logging
import os
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from interp.files.places import LOCKS
from interp.subjects import weight_cache
from interp.subjects.weight_cache import (
    ABANDONED_AFTER,
    MANIFEST,
    UNHELD_FOR,
    cache_home,
    filled,
    is_whole,
    source_sha256,
)

CONTENT = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 64}


def fill(folder: Path, content: dict[str, bytes] = CONTENT) -> Path:
    with filled(folder, {"source": {"name": "x.gguf"}}) as draft:
        for name, data in content.items():
            (draft / name).write_bytes(data)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def rewrite_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)


DAMAGE = {
    "a flipped bit": (flip_a_byte, "the checksum of model.safetensors differs"),
    "a truncated file": (
        lambda folder: os.truncate(folder / "model.safetensors", 100),
        "has 100 bytes instead of 16384",
    ),
    "a lost file": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "a lost manifest": (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is unreadable"),
    "half a manifest": (lambda folder: rewrite_manifest(folder, '{"files": {'), "manifest.json is unreadable"),
    "another manifest": (lambda folder: rewrite_manifest(folder, '{"files": [1]}'), "manifest.json is unreadable"),
}


def test_a_filled_folder_is_whole_and_says_what_it_is(tmp_path):
    folder = fill(tmp_path / "home" / "weights")
    assert is_whole(folder)
    assert names(folder.parent) == ["weights"]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["source"] == {"name": "x.gguf"}
    assert set(manifest["files"]) == set(CONTENT)
    assert manifest["files"]["model.safetensors"]["bytes"] == len(CONTENT["model.safetensors"])


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_reported_in_one_line_and_mended(kind, tmp_path, caplog):
    damage, reason = DAMAGE[kind]
    folder = fill(tmp_path / "weights")
    damage(folder)
    with caplog.at_level(logging.WARNING):
        assert not is_whole(folder)
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    fill(folder)
    assert is_whole(folder)
    assert names(tmp_path) == ["weights"]


def test_an_absent_folder_is_not_whole_and_not_worth_a_word(tmp_path, caplog):
    assert not is_whole(tmp_path / "nothing")
    assert not caplog.records


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_interrupted_fill_leaves_what_was_there(error, tmp_path):
    def interrupted(folder: Path) -> None:
        with filled(folder, {}) as draft:
            (draft / "model.safetensors").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        interrupted(tmp_path / "new")
    assert names(tmp_path) == []
    old = fill(tmp_path / "old")
    with pytest.raises(error):
        interrupted(old)
    assert is_whole(old)
    assert (old / "model.safetensors").read_bytes() == CONTENT["model.safetensors"]


def test_the_slower_of_two_keeps_the_folder_of_the_faster(tmp_path):
    folder = tmp_path / "weights"
    with filled(folder, {}) as draft:
        (draft / "who").write_bytes(b"slower")
        fill(folder, {"who": b"faster"})
    assert (folder / "who").read_bytes() == b"faster"
    assert is_whole(folder)
    assert names(tmp_path) == ["weights"]


def _fill_together(home: Path, rounds: int, start) -> None:
    for number in range(rounds):
        folder = home / str(number)
        start.wait()
        if not is_whole(folder):
            fill(folder)
        if not is_whole(folder):
            raise AssertionError(f"{folder} was just filled and is not whole")


def test_processes_that_fill_the_same_folders_at_once_all_succeed(tmp_path):
    rounds, workers = 20, 3
    for number in range(0, rounds, 2):
        flip_a_byte(fill(tmp_path / str(number)))
    context = get_context("spawn")
    start = context.Barrier(workers, timeout=60)
    crew = [context.Process(target=_fill_together, args=(tmp_path, rounds, start)) for _ in range(workers)]
    for worker in crew:
        worker.start()
    for worker in crew:
        worker.join()
    assert [worker.exitcode for worker in crew] == [0] * workers
    assert set(names(tmp_path)) == {str(number) for number in range(rounds)}


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    dead, living = tmp_path / ".weights.dead.tmp", tmp_path / ".weights.living.tmp"
    for draft in (dead, living):
        draft.mkdir()
        (draft / "model.safetensors").write_bytes(b"half")
    long_ago = time.time() - ABANDONED_AFTER - 60
    os.utime(dead, (long_ago, long_ago))
    fill(tmp_path / "weights")
    assert names(tmp_path) == [living.name, "weights"]


def test_a_source_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    source, home = tmp_path / "model.gguf", tmp_path / "home"
    source.write_bytes(b"GGUF one")
    first = source_sha256(source, home)
    with monkeypatch.context() as patch:
        patch.setattr(weight_cache, "file_sha256", lambda path: pytest.fail("hashed again"))
        assert source_sha256(source, home) == first
    source.write_bytes(b"GGUF two, longer")
    second = source_sha256(source, home)
    assert second != first
    source.write_bytes(b"GGUF two, LONGER")  # same size; the time is moved in case the clock is coarse
    os.utime(source, ns=(0, 0))
    assert source_sha256(source, home) not in (first, second)


def test_the_cache_moves_with_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    assert cache_home() == tmp_path
    monkeypatch.setenv("INTERP_CACHE", "")
    assert cache_home().name == "interp"


@pytest.mark.skipif(not LOCKS, reason="a dead process cannot be told from a living one")
def test_what_a_process_that_died_a_minute_ago_left_is_swept(tmp_path):
    dead = tmp_path / ".weights.dead.tmp"
    dead.mkdir()
    with filled(tmp_path / "slow", {}) as living:
        for draft in (dead, living):
            os.utime(draft, (time.time() - UNHELD_FOR - 10,) * 2)
        fill(tmp_path / "weights")
        assert not dead.exists()
        assert living.exists()
