"""What reaches a terminal: nothing that drives it, all that was found whatever its encoding, and no traceback where
nobody reads, nothing can be written or a stream is closed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp import cli
from interp.cli.terminal import PlainStream, ReaderGoneError, printable
from interp.errors import StorageError
from tests.models import shared, tokenizer

ESCAPES = "\x1b]0;title\x07\x1b[31m\x9b2J\x08\x7f\u202eright to left\u2066\u200f\r over"
FOREIGN = ["\N{GREEK SMALL LETTER SIGMA}", "größe", "首都", "😀", "\u200b", "\udcff", ESCAPES]
ENCODINGS = ["ascii", "cp1252", "latin-1", "shift_jis", "utf-8", "utf-16"]


def drives(text: str) -> list[str]:
    """The characters of a text that would drive a terminal."""
    return [c for c in text if c not in "\n\t" and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]


def stream(encoding: str) -> tuple[PlainStream, io.BytesIO]:
    held = io.BytesIO()
    return PlainStream(io.TextIOWrapper(held, encoding=encoding, newline=""), forgiving=False), held


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(
    parts=st.lists(st.one_of(st.sampled_from(FOREIGN), st.text(st.characters(exclude_characters="\u200d"))), max_size=9)
)
def test_a_stream_takes_any_text_and_gives_none_that_drives(encoding: str, parts: list[str]) -> None:
    out, held = stream(encoding)
    print(*parts, file=out, flush=True)
    out.writelines(parts)
    out.flush()
    told = held.getvalue().decode(encoding)
    assert not drives(told)
    lines = "".join((*" ".join(parts), "\n", *parts)).count("\n")
    assert told.count("\n") == lines


def test_what_can_be_shown_is_shown() -> None:
    out, held = stream("utf-8")
    text = "größe\tσ ≤ 1, 首都\N{IDEOGRAPHIC SPACE}は\N{NO-BREAK SPACE}👩\u200d🚀\n"
    out.write(text)
    out.write("\x1b[31m\u202e\n")
    out.flush()
    assert held.getvalue().decode() == text + "\\x1b[31m\\u202e\n"
    assert printable("two\nlines\tand \x1b") == "two\\nlines\\tand \\x1b"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Exit code and both outputs of a command in this process, on a terminal of that encoding."""
    held = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(one, encoding=encoding) for one in held]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["interp", *arguments])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        for one in streams:
            one.flush()
    out, err = (one.getvalue().decode(encoding) for one in held)
    return int(code or 0), out, err


@pytest.fixture
def hostile(tmp_path: Path) -> dict[str, str]:
    """A model, a text and a place whose names, words and tokens hold what drives a terminal."""
    folder = tmp_path / "mo\x1b[31mdel \u202eσ"
    shared("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    words = (folder / "tokenizer.json").read_text(encoding="utf-8")
    for plain, word in (("w10", "\x1b["), ("w11", "\u202e"), ("w12", "首都"), ("w13", "\x9b")):
        words = words.replace(f'"{plain}":', f"{json.dumps(word)}:")
    (folder / "tokenizer.json").write_text(words, encoding="utf-8")
    text = tmp_path / "te\x1b]0;t\x07xt σ.txt"
    text.write_text("\x1b[ \u202e 首都 \x9b " * 12, encoding="utf-8")
    return {"model": str(folder), "text": str(text), "out": str(tmp_path / "o\x1bu\nt σ")}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_findings_come_whole_and_drive_nothing(hostile: dict[str, str], encoding: str, monkeypatch) -> None:
    asked = ("--text", hostile["text"], "--probes", "text_sinks,channel_imbalance", "--out", hostile["out"])
    code, out, err = run(monkeypatch, "probe", hostile["model"], *asked, encoding=encoding)
    assert (code, drives(out + err)) == (0, []), err
    assert "text_sinks" in out
    assert len([line for line in out.splitlines() if line.startswith("wrote ")]) == 2
    assert "\\x1b" in out
    plain = run(monkeypatch, "probe", hostile["model"], *asked, "--json", encoding=encoding)
    assert json.loads(plain[1])["run"]["n_tokens"] > 40
    assert not drives(plain[1] + plain[2])


def test_every_command_drives_nothing(hostile: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    report = ("report", hostile["model"], "--text", hostile["text"], "--out", hostile["out"] + "/r.html")
    written = ("generate", hostile["model"], "--prompt-file", hostile["text"], "--max-new-tokens", "3")
    for command in (report, written, ("models",), ("icl",)):
        code, out, err = run(monkeypatch, *command, encoding="ascii")
        assert (code, drives(out + err)) == (0, []), err


def bad(hostile: dict[str, str], tmp: Path) -> dict[str, list[str]]:
    """Mistakes whose sentences repeat what is hostile."""
    known = Path(hostile["model"], "config.json")
    strange = tmp / "strange"
    strange.mkdir()
    strange.joinpath("config.json").write_text(json.dumps({"model_type": ESCAPES}), encoding="utf-8")
    broken = tmp / "broken"
    broken.mkdir()
    broken.joinpath("config.json").write_text(
        json.dumps(json.loads(known.read_text()) | {"hidden_act": ESCAPES}), encoding="utf-8"
    )
    rest = ["--text", hostile["text"], "--out", hostile["out"]]
    return {
        "a model's type": ["probe", str(strange), *rest],
        "a model's setting": ["probe", str(broken), *rest],
        "a model's name": ["probe", ESCAPES, *rest],
        "a text's name": ["probe", hostile["model"], "--text", ESCAPES, "--out", "o"],
        "a probe's name": ["probe", hostile["model"], *rest, "--probes", ESCAPES],
        "an intervention": ["generate", hostile["model"], "--prompt", "w5", "--with", ESCAPES],
        "a command": [ESCAPES],
        "an option": ["probe", f"--{ESCAPES}"],
        "a study": ["icl", ESCAPES],
        "an address": ["app", "--address", ESCAPES],
        "a dtype": ["probe", hostile["model"], *rest, "--dtype", ESCAPES],
    }


def test_errors_drive_nothing(hostile: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    for case, command in bad(hostile, tmp_path).items():
        for debug in ((), ("--debug",)):
            code, out, err = run(monkeypatch, *command, *debug, encoding="ascii")
            assert code == 2, (case, err)
            assert not drives(out + err), case
            assert "\\x1b" in err or case == "a model's setting", (case, err)


class Refusing(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_what_cannot_be_written() -> None:
    full = OSError(28, "No space left on device")
    with pytest.raises(StorageError, match="cannot write to standard output: No space left on device"):
        PlainStream(Refusing(full), forgiving=False).write("text")
    with pytest.raises(ReaderGoneError):
        PlainStream(Refusing(BrokenPipeError()), forgiving=False).write("text")
    assert PlainStream(Refusing(full), forgiving=True).write("text") == 4


ENDINGS = {
    "read by nobody": ("| (exec <&-; sleep 3)", 141, ""),
    "a full disk": ("> /dev/full", 2, "error: cannot write to standard output: No space left on device."),
    "closed": (">&-", 0, ""),
    "all closed": ("<&- >&- 2>&-", 0, ""),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux'")
@pytest.mark.parametrize("ending", ENDINGS)
def test_where_output_goes(ending: str, tmp_path: Path) -> None:
    """In a process of its own, as Python itself complains when it ends and cannot write."""
    where, code, says = ENDINGS[ending]
    shell = f'"{sys.executable}" -m interp.cli models {where}; echo "${{PIPESTATUS[0]}}" > code'
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    told = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert (tmp_path / "code").read_text().strip() == str(code)
    assert told.stderr.strip() == says
