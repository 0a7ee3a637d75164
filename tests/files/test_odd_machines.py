"""A user without a home or a name, closed folders, caches of others: what was asked for is done all the same."""

from __future__ import annotations

import json
import logging
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interp.cli import explorer
from interp.errors import InterpError, StorageError
from interp.files import private
from interp.subjects import local, weight_cache, weights
from interp.subjects.weight_cache import ClosedError, filled, is_whole
from tests.subjects.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.skipif(os.name == "nt", reason="users are numbers elsewhere")
ROOT = os.name != "nt" and os.geteuid() == 0


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that is a number: no home in the environment, no entry in the list of users."""

    def unknown(user: Any) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in ("HOME", "USERPROFILE", "INTERP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    private._temporary.cache_clear()
    local._say_once.cache_clear()


def test_without_a_home_weights_are_unpacked_and_not_kept(nobody: None, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf")
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.WARNING, logger="interp"):
        model, _ = weights.load_gguf(tiny)
    assert model.config.name_or_path == "tiny"
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith("this user has no home folder to keep anything in; set INTERP_CACHE to a folder.")
    assert sorted(tmp_path.rglob("*")) == before  # no folder called ~ either


def test_without_a_home_parts_are_kept_while_the_process_lives(nobody: None, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="interp"):
        folder = private.private_folder("studies", "toy")
        again = private.private_folder("studies", "other")
    assert folder.is_dir()
    assert folder.parent == again.parent
    assert stat.S_IMODE(folder.parents[1].stat().st_mode) == 0o700
    assert len(caplog.records) == 1
    assert "until this process ends" in caplog.text


def test_the_folder_of_a_process_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = "from interp.files.private import private_folder; print(private_folder('studies'))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"INTERP_CACHE": str(tmp_path / "file"), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert not Path(told.stdout.strip()).parent.exists()
    assert "cannot make the folder" in told.stderr
    assert told.stderr.count("\n") == 1


def test_without_a_home_models_are_listed(nobody: None, monkeypatch, caplog) -> None:
    import huggingface_hub

    for error in (RuntimeError("no home"), PermissionError(13, "Permission denied"), ValueError("it is a file")):
        caplog.clear()

        def refusing(error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(huggingface_hub, "scan_cache_dir", refusing)
        with caplog.at_level(logging.WARNING, logger="interp"):
            assert [row["name"] for _ in range(2) for row in local.local_models()] == ["demo", "emoji-vlm"] * 2
        assert len(caplog.records) == 1


def test_without_a_home_the_explorer_starts(nobody: None, monkeypatch) -> None:
    from interp_explorer import serving

    homes = []
    monkeypatch.setattr(serving, "serve", lambda *_: homes.append(Path.home()))
    monkeypatch.setenv("HOME", "")  # so that what is set there is taken back
    monkeypatch.delenv("HOME")
    assert explorer.start(browser=False) == 0
    assert homes[0].is_dir()


@pytest.mark.parametrize("place", ["~nosuchuser/cache", "~nosuchuser"])
def test_a_cache_in_the_home_of_nobody_is_a_sentence(place: str, nobody: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", place)
    for use in (lambda: weights.load_gguf(write_tiny_gguf(tmp_path / "tiny.gguf")), lambda: private.private_folder()):
        with pytest.raises(InterpError, match=r"INTERP_CACHE: there is no home folder for ~nosuchuser"):
            use()


def as_another(call: Any) -> str:
    """What `call` returns or raises for a user who is not root and owns nothing, in a process that goes no further."""
    read, written = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if ROOT:
                os.setgroups([])
                os.setgid(12345)
                os.setuid(12345)
            told = repr(call())
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(written, told.encode())
        os._exit(0)
    os.close(written)
    with os.fdopen(read, "rb") as answer:
        told = answer.read().decode()
    os.waitpid(child, 0)
    return told


@pytest.fixture
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights that root made; all folders above it are open."""
    folder = tmp_path_factory.mktemp("shared") / "cache"
    with filled(folder / "weights", {}) as draft:
        (draft / "model.safetensors").touch(mode=0o600)
        (draft / "config.json").write_text("{}")
    for above in list(folder.parents)[:4]:
        if above.stat().st_uid == os.geteuid() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o055)
    return folder / "weights"


def test_weights_in_a_cache_have_the_mode_of_other_files(shared_cache: Path) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    assert {stat.S_IMODE(file.stat().st_mode) for file in shared_cache.iterdir()} == {0o666 & ~umask}
    assert as_another(lambda: is_whole(shared_cache)) == "True"


@pytest.mark.parametrize("closed", ["model.safetensors", weight_cache.MANIFEST, ".", ".."])
def test_a_cache_that_another_user_closed_is_not_taken_for_damaged(closed: str, shared_cache: Path) -> None:
    place = shared_cache / closed
    before = place.stat().st_mode
    place.chmod(0o700 if place.is_dir() and ROOT else 0o600 if ROOT else 0)
    told = as_another(lambda: is_whole(shared_cache))
    place.chmod(before)
    assert told.startswith("ClosedError: ")
    assert "Permission denied" in told


def test_weights_that_are_closed_are_unpacked_and_left_alone(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf")
    weights.load_gguf(tiny)

    def closed(_: Path) -> bool:
        raise ClosedError("model.safetensors: Permission denied")

    monkeypatch.setattr(weights, "is_whole", closed)
    monkeypatch.setattr(weights, "_store", lambda *_: pytest.fail("another user's folder was replaced"))
    with caplog.at_level(logging.WARNING, logger="interp"):
        model, _ = weights.load_gguf(tiny)
    assert model.config.name_or_path == "tiny"
    assert [record.getMessage() for record in caplog.records] == [
        "the cache of unpacked weights cannot be used, so this load is slow: model.safetensors: Permission denied"
    ]


def test_a_home_is_put_in_the_place_of_a_tilde(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert private.expanded("~/results", "--out") == Path("/home/of/mine/results")
    with pytest.raises(StorageError, match=r"--out: there is no home folder for ~nosuchuser in ~nosuchuser/o"):
        private.expanded("~nosuchuser/o", "--out")


LONG = "a" * 256
MISTAKES = {
    "out of nobody": ["probe", "MODEL", "--text", "TEXT", "--out", "~nosuchuser/o"],
    "report of nobody": ["report", "MODEL", "--text", "TEXT", "--out=~nosuchuser/r.html"],
    "study of nobody": ["icl", "softmax-regression", "--out", "~nosuchuser/o"],
    "text of nobody": ["probe", "MODEL", "--text", "~nosuchuser/t", "--out", "OUT"],
    "prompt of nobody": ["generate", "MODEL", "--prompt-file", "~nosuchuser/t"],
    "model of nobody": ["probe", "~nosuchuser/m", "--text", "TEXT", "--out", "OUT"],
    "long model": ["probe", LONG, "--text", "TEXT", "--out", "OUT"],
    "long weights": ["probe", f"{LONG}.gguf", "--text", "TEXT", "--out", "OUT"],
    "long text": ["probe", "MODEL", "--text", LONG, "--out", "OUT"],
    "long out": ["probe", "MODEL", "--text", "TEXT", "--out", LONG],
    "long report": ["report", "MODEL", "--text", "TEXT", "--out", f"{LONG}.html"],
    "long prompt": ["generate", "MODEL", "--prompt-file", LONG],
    "long intervention": ["generate", "MODEL", "--prompt", "w5", "--with", f"{LONG}.toml"],
    "long study": ["icl", "softmax-regression", "--out", LONG],
    "endless text": ["probe", "MODEL", "--text", "/dev/zero", "--out", "OUT"],
    "endless prompt": ["generate", "MODEL", "--prompt-file", "/dev/zero"],
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_users_mistake_is_one_line(case: str, tmp_path: Path, monkeypatch, capsys) -> None:
    from interp import cli

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "text.txt").write_text("w5 w6")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = {"MODEL": "model", "TEXT": "text.txt", "OUT": "out"}
    monkeypatch.setattr(sys, "argv", ["interp", *(words.get(word, word) for word in MISTAKES[case])])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr()
    assert (stop.value.code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
