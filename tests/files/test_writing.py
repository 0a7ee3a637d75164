"""A file is what it was or what it should be, whatever the disk, the path or the process does."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from interp.errors import StorageError
from interp.files import places
from interp.files.writing import Outputs, expect_writable, write
from tests.files.faulty_disk import FaultyDisk

FAULTS = {
    "full at once": {"room": 0},
    "full later": {"room": 700},
    "full at the last byte": {"room": 999},
    "sync fails": {"failing": "fsync"},
    "rename fails": {"failing": "replace"},
    "open fails": {"failing": "open"},
    "lies": {"lying": True},
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_disk_that_fails_is_an_error_and_leaves_what_was_there(fault, old, tmp_path, monkeypatch):
    path = tmp_path / "x.nc"
    if old is not None:
        path.write_bytes(old)
    FaultyDisk(**FAULTS[fault]).put_in(monkeypatch)
    with pytest.raises(StorageError, match=r"cannot write .*x\.nc: .*\.$"):
        write(path, b"n" * 1000)
    assert (path.read_bytes() if path.exists() else None) == old
    assert names(tmp_path) == ([] if old is None else ["x.nc"])


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    disk = FaultyDisk(most=7).put_in(monkeypatch)
    assert write(tmp_path / "x", "héllo " * 20).read_text(encoding="utf-8") == "héllo " * 20
    assert disk.calls == 20


def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "link to link").symlink_to(tmp_path / "link")
    for content in (b"new", b"newer"):  # first to nothing, then to a file
        write(tmp_path / "link to link", content)
        assert (tmp_path / "there" / "file").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "there") == ["file"]


def test_a_circle_of_links_is_a_sentence(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(StorageError, match="links lead in a circle"):
        write(tmp_path / "a", b"")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="gives a link to another user")
def test_a_strangers_link_in_a_shared_folder_is_not_followed(tmp_path):
    shared, mine = tmp_path / "shared", tmp_path / "mine"
    shared.mkdir()
    shared.chmod(0o1777)
    mine.write_bytes(b"precious")
    (shared / "report.html").symlink_to(mine)
    os.lchown(shared / "report.html", 12345, 12345)
    with pytest.raises(StorageError, match="another user put into a shared folder"):
        write(shared / "report.html", b"page")
    assert mine.read_bytes() == b"precious"


def test_modes_are_kept_and_new_files_follow_the_umask(tmp_path):
    path = write(tmp_path / "x", b"")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    write(path, b"again")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_special_files_and_impossible_names_are_refused_before_and_while_writing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    bad = {
        tmp_path / "pipe": "a pipe",
        "/dev/null": "a device",
        tmp_path / "folder": "directory",
        tmp_path / "file" / "x": r"(?i)not a directory|file exists",
        tmp_path / ("é" * 128): "too long",
        tmp_path / ("a" * 256) / "x": "too long",
        f"{tmp_path}/a\0b": "no file can have this name",
        f"{tmp_path}/\ud800": "no file can have this name",
    }
    for path, why in bad.items():
        for refuse in (expect_writable, lambda path: write(path, b"x")):
            with pytest.raises(StorageError, match=why):
                refuse(path)
    assert names(tmp_path) == ["file", "folder", "pipe"]
    write(tmp_path / ("a" * 255), b"long enough")


def test_a_trial_leaves_nothing(tmp_path):
    expect_writable(tmp_path / "a" / "b" / "x.nc", tmp_path / "y.nc")
    assert names(tmp_path) == []


def test_outputs_appear_together_or_not_at_all(tmp_path, monkeypatch):
    wanted = {"a.nc": b"a", "b.md": b"b", "c.html": b"c"}

    def write_all(bad: str = ""):
        with Outputs() as outputs:
            for name, content in wanted.items():
                if name == bad:
                    raise KeyboardInterrupt
                outputs.add(tmp_path / name, content)
                assert not (tmp_path / name).exists()

    for bad in wanted:
        with pytest.raises(KeyboardInterrupt):
            write_all(bad)
        assert names(tmp_path) == []
    write_all()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == wanted


KILLED = """
import os, sys
from interp.files import places
from interp.files.writing import Outputs
folder, die_at = sys.argv[1], int(sys.argv[2])
class Os:
    count = 0
    def __getattr__(self, name): return getattr(os, name)
    def replace(self, *paths):
        Os.count += 1
        if Os.count == die_at: os.kill(os.getpid(), 9)
        os.replace(*paths)
places.os = Os()
with Outputs() as outputs:
    for name in ("a.nc", "b.md", "c.html"): outputs.add(f"{folder}/{name}", b"new")
"""


@pytest.mark.skipif(not places.LOCKS, reason="a dead process cannot be told from a living one")
@pytest.mark.parametrize("die_at", [1, 2, 3, 4, 5])
def test_killed_between_renames_the_next_writer_finishes(die_at, tmp_path):
    """The first rename makes the journal; after it all is new, before it all is old."""
    for name in ("a.nc", "b.md", "c.html"):
        (tmp_path / name).write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(die_at)])
    assert done.returncode == (0 if die_at == 5 else -9)
    write(tmp_path / "other", b"x")
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"other": b"x", **dict.fromkeys(["a.nc", "b.md", "c.html"], b"old" if die_at == 1 else b"new")}


@pytest.mark.skipif(not places.LOCKS, reason="a dead process cannot be told from a living one")
def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    dead = tmp_path / ".interp-0123456789abcdef.part"
    dead.write_bytes(b"half")
    with Outputs() as outputs:
        outputs.add(tmp_path / "mine", b"x")
        write(tmp_path / "other", b"y")
        assert not dead.exists()
    assert names(tmp_path) == ["mine", "other"]


@pytest.mark.parametrize(
    "moves",
    ["{", "3", "[1]", "[" * 100_000, json.dumps([[".interp-0123456789abcdef.part", "../x.nc"]]),
     json.dumps([[".interp-0123456789abcdef.part", ".bashrc"]]), json.dumps([["secret", "x.nc"]])],
)  # fmt: skip
def test_a_journal_from_elsewhere_moves_nothing(moves, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".interp-0123456789abcdef.part").write_bytes(b"evil")
    (folder / "secret").write_bytes(b"secret")
    (folder / ".interp-0123456789abcdef.swap").write_text(moves)
    places.settle(folder)
    assert names(folder) == ["secret"]
    assert names(tmp_path) == ["folder"]


KEEPS_WRITING = """
import sys
from interp.files.writing import Outputs
for generation in range(10**9):
    with Outputs() as outputs:
        for name in ("a.nc", "b.md", "c.html"): outputs.add(f"{sys.argv[1]}/{name}", b"%09d" % generation * 5000)
    print(generation, flush=True)
"""


@pytest.mark.skipif(not places.LOCKS, reason="a dead process cannot be told from a living one")
@pytest.mark.parametrize("kill", range(12))
def test_killed_at_any_moment_all_are_of_one_run(kill, tmp_path):
    with subprocess.Popen([sys.executable, "-c", KEEPS_WRITING, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        for _ in range(2 + kill):
            writer.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.0017 * kill)
        writer.kill()
    places.settle(tmp_path)
    assert names(tmp_path) == ["a.nc", "b.md", "c.html"]
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1
    (content,) = contents
    assert content == content[:9] * 5000
