"""The command line: what it writes, and one line with exit code 2 for every kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from interp import cli
from interp.probes import available
from interp.results import storage
from tests.models import shared, tokenizer

TEXT = "w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16"


@pytest.fixture
def model(tmp_path: Path) -> str:
    shared("llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["interp", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_probe_writes_results_and_findings(model: str, text: str, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "out"
    names = "channel_imbalance,text_sinks"
    assert run(monkeypatch, "probe", model, "--text", text, "--probes", names, "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "read the first 13 tokens" in printed
    assert "the text has no more than that; 512 were asked for" in printed  # the default of 1,024 exceeds this context
    assert sorted(p.name for p in out.iterdir()) == ["channel_imbalance.nc", "text_sinks.nc"]
    stored = storage.load(out / "text_sinks.nc")
    assert stored.attrs["n_tokens"] == 13
    assert stored.attrs["text"] == text


def test_json_is_one_object(model: str, text: str, tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = (
        "probe",
        model,
        "--text",
        text,
        "--tokens",
        "6",
        "--probes",
        "text_sinks",
        "--out",
        str(tmp_path),
        "--json",
    )
    assert run(monkeypatch, *arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"]["n_tokens"] == 6
    assert told["files"] == {"text_sinks": str(tmp_path / "text_sinks.nc")}
    assert set(told["run"]["seconds"]) == {"import", "load", "probe"}


def test_report_writes_html_markdown_and_results(model: str, text: str, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "r" / "report.html"
    assert run(monkeypatch, "report", model, "--text", text, "--out", str(out)) == 0
    page = out.read_text(encoding="utf-8")
    assert "<html" in page
    assert out.with_suffix(".md").is_file()
    assert {file.name for file in out.parent.glob("*.nc")} == {f"report.{name}.nc" for name in available()}
    assert str(out) in capsys.readouterr().out


ASKED = [
    (["text_sinks:epsilon=[0.3,0.8],position=1,attention_rank"], {"attention_rank", "text_sinks"}),
    (["attention_rank", "text_sinks:position=1,epsilon=[0.3, 0.8]"], {"attention_rank", "text_sinks"}),
    (["logit_lens,attention_rank", "text_sinks : epsilon = [0.3,0.8] , position = 1"],
     {"attention_rank", "text_sinks", "logit_lens"}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "names"), ASKED)
@pytest.mark.parametrize("command", ["probe", "report"])
def test_probes_take_settings(
    command: str, options: list[str], names: set[str], model: str, text: str, tmp_path: Path, monkeypatch
) -> None:
    given = [part for option in options for part in ("--probes", option)]
    out, prefix = (tmp_path / "out", "") if command == "probe" else (tmp_path / "out" / "report.html", "report.")
    assert run(monkeypatch, command, model, "--text", text, *given, "--out", str(out)) == 0
    assert {file.name for file in (tmp_path / "out").glob("*.nc")} == {f"{prefix}{name}.nc" for name in names}
    stored = storage.load(tmp_path / "out" / f"{prefix}text_sinks.nc")
    assert stored["epsilon"].values.tolist() == [0.3, 0.8]
    assert stored.attrs["k"] == 1
    if command == "report":
        assert "TextSinks(epsilon=(0.3, 0.8), position=1)" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_help_says_how_settings_are_written(monkeypatch, capsys) -> None:
    for command in ("probe", "report"):
        assert run(monkeypatch, command, "--help") == 0
        told = " ".join(capsys.readouterr().out.split())
        assert "text_sinks:epsilon=[0.3,0.8],position=1,attention_rank" in told
        assert "may be repeated" in told


def test_models_lists_the_demo(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "models", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["name"] == "demo"
    assert rows[0]["bytes"] > 50_000_000


BAD_PROBES = {
    "text_sink:epsilon=0.3": "there is no probe 'text_sink'; did you mean 'text_sinks'",
    "attention_rank,text_sinks:epsilom=0.3": "text_sinks has no setting 'epsilom'; did you mean 'epsilon'",
    "text_sinks:epsilon=x": "epsilon should be a finite number or a list of finite numbers in brackets, found 'x'",
    "text_sinks:epsilon=[0.3": "epsilon should be a finite number or a list",
    "text_sinks:epsilon=7": "epsilon should be numbers between 0 and 1",
    "text_sinks:position=0.5": "position should be a whole number, found '0.5'",
    "text_sinks:position=1,position=2": "sets position twice",
    "text_sinks:": "is no probe: write name:key=value,key=value, as in text_sinks:epsilon=[0.3,0.8]",
    "text_sinks:epsilon": "is no probe: write name:key=value",
    "epsilon=0.3": "'epsilon=0.3' is a setting of no probe: write it as name:epsilon=0.3",
    "attention_rank,k=8": "'k=8' is a setting of no probe: write it as attention_rank:k=8",
    "attention_rank,attention_rank:k=8": "attention_rank is asked for twice",
    "icl_gd:steps=2": "icl_gd reads an interp.icl.AttentionRegressor",
}


def bad_inputs(model: str, text: str, tmp: Path) -> dict[str, tuple[list[str], str]]:
    (tmp / "empty.txt").write_text(" \n")
    (tmp / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    out = ["--out", str(tmp / "out")]
    return {
        "missing text": (["probe", model, "--text", str(tmp / "none.txt"), *out], "none.txt"),
        "empty text": (["probe", model, "--text", str(tmp / "empty.txt"), *out], "empty"),
        "not UTF-8": (["probe", model, "--text", str(tmp / "latin.txt"), *out], "not UTF-8"),
        "beyond the context": (["probe", model, "--text", text, "--tokens", "513", *out], "context of 512"),
        "unknown probe": (["probe", model, "--text", text, "--probes", "text_sink", *out], "did you mean 'text_sinks'"),
        **{
            f"probes {asked}": (["probe", model, "--text", text, "--probes", asked, *out], says)
            for asked, says in BAD_PROBES.items()
        },
        "no probe": (["probe", model, "--text", text, "--probes", ",", *out], "no probe was asked for"),
        "unknown model": (["probe", "no/such-model", "--text", text, *out], "cannot load 'no/such-model'"),
        "truncated weights": (["probe", str(tmp / "cut.gguf"), "--text", text, *out], "cut.gguf"),
        "unknown dtype": (["probe", model, "--text", text, "--dtype", "int3", *out], "dtype is one of"),
        "report not html": (["report", model, "--text", text, "--out", str(tmp / "report.pdf")], "end it in .html"),
    }


CASES = ("missing text", "empty text", "not UTF-8", "beyond the context", "unknown probe", "no probe", "unknown model",
         "truncated weights", "unknown dtype", "report not html",
         *(f"probes {asked}" for asked in BAD_PROBES))  # fmt: skip


def test_bench_names_the_path_of_every_kernel(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "bench", "kernels", "--tokens", "64", "--device", "cpu", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    paths = {row["what"]: row["path"] for row in told["kernels"]}
    assert paths["SDPA, decode"] == "torch"
    assert {path for what, path in paths.items() if not what.startswith(("SDPA", "copy"))} == {"cpu"}
    assert all(row["ms"] > 0 and row["tokens"] == 64 for row in told["kernels"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernel"], "there is 'kernels'"),
        (["--device", "tpu"], "cpu or cuda"),
        (["--dtype", "float8"], "dtype is one of"),
    ],
)
def test_bench_refuses_in_one_line(arguments: list[str], message: str, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "bench", *arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, model: str, text: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    arguments, says = bad_inputs(model, text, tmp_path)[case]
    before = sorted(tmp_path.rglob("*"))
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    line = captured.err.strip()
    assert captured.out == ""
    assert says in line
    assert "\n" not in line
    assert line.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_architecture_that_computes_its_attention_itself(tmp_path: Path, text: str, monkeypatch, capsys) -> None:
    import transformers

    config = transformers.BloomConfig(vocab_size=128, hidden_size=64, n_layer=2, n_head=8)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    tokenizer().save_pretrained(tmp_path / "bloom")
    assert run(monkeypatch, "probe", str(tmp_path / "bloom"), "--text", text, "--out", str(tmp_path / "out")) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: BloomForCausalLM has no hook point 'attn.hook_event'")
    assert "BloomAttention computes its attention itself; only scores, pattern, values and z can be" in line
    assert not (tmp_path / "out").exists()


def test_usage_errors_and_debug() -> None:
    """In a process of its own: wrong usage is code 2 without a traceback, --debug shows one."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "interp.cli", *arguments], capture_output=True, text=True, check=False
        )

    wrong = command("prob")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    missing = ("probe", "demo", "--text", "/no/such/file", "--out", "x")
    assert "Traceback" not in command(*missing).stderr
    debug = command(*missing, "--debug")
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize("command", ["probe", "report", "icl"])
@pytest.mark.parametrize("place", ["long", "pipe", "closed"])
def test_targets_are_tried_before_the_model_runs(
    command, place, text: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    """One of the files cannot be written; where the model is loaded or the study run all the same, this fails."""
    import interp
    from interp.icl.studies import Study

    monkeypatch.setattr(interp, "load", lambda *_, **__: pytest.fail("the model was loaded"), raising=False)
    monkeypatch.setattr(Study, "run", lambda *_, **__: pytest.fail("the study was run"))
    folder = tmp_path / {"long": "a" * 256, "pipe": "out", "closed": "file"}[place]
    if place == "closed":
        folder.write_text("a file, where a folder should be")
    if place == "pipe":
        folder.mkdir()
        name = {"probe": "text_sinks.nc", "report": "report.text_sinks.nc", "icl": "result.nc"}[command]
        os.mkfifo(folder / name)
    out = folder / "report.html" if command == "report" else folder
    given = ["icl", "sine"] if command == "icl" else [command, "model", "--text", text, "--probes", "text_sinks"]
    assert run(monkeypatch, *given, "--out", str(out)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: cannot write ")
