"""Every command with arguments of every kind: exit code 0,
or 2 with a sentence; and what was refused wrote nothing."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import interp_kernels.timing
import pytest

import interp
from interp import cli
from interp.cli import explorer
from interp.errors import InterpError
from interp.icl import studies
from tests.fuzzing.drawing import Draw, damaged
from tests.fuzzing.test_fuzz_reading import lens_of
from tests.fuzzing.test_fuzz_settings import SPECS
from tests.fuzzing.trying import fuzz, inputs
from tests.icl.studies.toy_study import ToyStudy

COMMANDS: list[list[str]] = [
    ["models"], ["models", "--json"], ["probe", "demo", "--out", "out", "--text", "t.txt", "--probes",
    "text_sinks:epsilon=0.3"],
    ["probe", "demo", "--out", "out", "--probes", "text_sinks,channel_imbalance", "--tokens", "6", "--json"],
    ["report", "demo", "--out", "r.html", "--text", "t.txt", "--tokens", "4", "--probes", "text_sinks"],
    ["generate", "demo", "--prompt", "w4 w5 w6 w7", "--with", "snapkv:budget=3,window=2", "--max-new-tokens", "2"],
    ["generate", "demo", "--prompt-file", "t.txt", "--with", "i.toml", "--max-new-tokens", "2", "--json", "--dtype",
    "float32"],
    ["generate", "demo", "--prompt", "w4", "--chat", "--with", "knock_out:keys=0", "--with",
    "temperature:temperature=2.0"],
    ["bench", "kernels", "--tokens", "64", "--device", "cpu", "--dtype", "float32", "--json"],
    ["icl", "--list"], ["icl", "toy", "--out", "study", "--quick", "--seeds", "1", "--json"], ["icl", "toy",
    "--out", "study"],
    ["app", "--port", "8501", "--address", "127.0.0.1", "--no-browser"], ["app"], ["--help"], [],
]  # fmt: skip
OPTIONS = [
    "--json", "--out", "--text", "--tokens", "--probes", "--dtype", "--prompt", "--prompt-file", "--with", "--chat",
    "--max-new-tokens", "--device", "--list", "--quick", "--seeds", "--variant", "--port", "--address",
    "--no-browser",
    "--debug=", "--", "-h", "--help", "--other",
]  # fmt: skip
PATHS = {"out", "t.txt", "r.html", "i.toml", "study"}
ELSEWHERE = (
    "/dev/null",
    "/dev/null/x",
    "/proc/self/x",
    "",
    ".",
    "t.txt/x",
    "\x00",
    "a" * 300,
    "é.html",
    "t.txt",
    "out",
)
TEXT = b"w5 w6 w7 w8 w9 w10"
TOML = b'[[intervention]]\nname = "snapkv"\nbudget = 3\nwindow = 2\n'


@pytest.fixture(autouse=True)
def quick_and_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model whatever is asked for, nothing timed, trained, served or looked up; and files in one folder."""

    class Server:
        serve = staticmethod(lambda *_: None)

    known, numeric = interp.load, socket.getaddrinfo
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, explorer.SERVING, Server)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: numeric(host, 0, 0, socket.SOCK_STREAM, 0, 4))
    monkeypatch.setattr(interp_kernels.timing, "measure", lambda *_, **__: [])
    monkeypatch.setattr(studies, "available", lambda: {"toy": ToyStudy})
    monkeypatch.setattr(
        interp, "load", lambda name, *more, **how: lens_of() if name == "demo" else known(name, *more, **how)
    )
    (tmp_path / "t.txt").write_bytes(TEXT)
    (tmp_path / "i.toml").write_bytes(TOML)


def argument(draw: Draw, valid: str) -> str:
    """An argument that is nearly a valid one. A path stays in the folder, or leads where nothing can be written."""
    made = draw.text(valid)
    if valid not in PATHS or draw.often(0.3):
        return draw.choice(ELSEWHERE) if valid in PATHS else made
    strange = made.startswith(("/", "~", "-")) or ".." in made
    return draw.choice(ELSEWHERE) if strange else made


def typed(draw: Draw) -> list[str]:
    """A command as somebody types it who makes a mistake or two."""
    words = list(draw.choice(COMMANDS))
    for _ in range(draw.choice((1, 1, 1, 2))):
        at = draw.randrange(len(words) + 1)
        kind = draw.randrange(6)
        if kind == 0 and words:
            del words[at - 1]
        elif kind == 1:
            words.insert(at, draw.choice(OPTIONS))
        elif kind == 2:
            words.insert(at, str(draw.number()))
        elif kind == 3:
            words += ["--with" if "generate" in words else "--probes", draw.text(draw.choice(SPECS))]
        elif words:
            place = draw.randrange(len(words))
            if place or draw.often(0.2):
                words[place] = argument(draw, words[place])
    return [word.replace("\x00", "\\0")[:200] for word in words]  # as a shell could hand them over


def command(folder: Path) -> Callable[[Draw], None]:
    def attempt(draw: Draw) -> None:
        words = typed(draw)
        if draw.often(0.1):
            (folder / "t.txt").write_bytes(damaged(draw, TEXT))
        if draw.often(0.1):
            (folder / "i.toml").write_bytes(damaged(draw, TOML))
        files = set(os.walk(".").__next__()[2])
        draw.trying("interp", words)
        sys.argv = ["interp", *words]
        said, told = io.StringIO(), io.StringIO()
        code: Any = 0
        try:
            with redirect_stdout(told), redirect_stderr(said):
                cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            (folder / "t.txt").write_bytes(TEXT)
            (folder / "i.toml").write_bytes(TOML)
        assert code in (0, 2), said.getvalue().splitlines()[-1:]
        if code:
            assert "Traceback" not in said.getvalue()
            assert said.getvalue().startswith(("error: ", "Usage: ", "Error: ")), said.getvalue()
            assert set(os.walk(".").__next__()[2]) == files, "a refused command left a file"
            if said.getvalue().startswith("error: "):
                assert said.getvalue().count("\n") == 1

    return attempt


@inputs(150)
def test_commands(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("COLUMNS", "200")
    fuzz("commands", count, command(tmp_path), None)


def loaded(draw: Draw) -> None:
    """Names and things that no model is of; what is a folder or a file of weights is another matter."""
    names = ("demo2", "no/such-model", "./nowhere", "x.gguf", "a/b/c", "t.txt", "model.bin")
    what: Any = draw.text(draw.choice(names)) if draw.often(0.7) else draw.value()
    how = {
        draw.choice(("dtype", "tokenizer", "device_map", "attn_implementation")): draw.choice(("a", 3, None, [], 1.5))
    }
    how = how if draw.often(0.3) else {}
    draw.trying("load", what, how)
    if what == "demo":
        return
    interp.load(what, **how)
    raise AssertionError("it was loaded")


@inputs(100)
def test_loading(count: int) -> None:
    fuzz("loading", count, loaded)


def test_a_refusal_is_seen_as_one() -> None:
    """What the tests above take for one is what the command line makes of it."""
    with pytest.raises(InterpError):
        interp.load("no/such-model")
