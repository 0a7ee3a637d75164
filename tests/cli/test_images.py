"""Pictures on the command line: probe, report and generate on a tiny model that sees, from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.cli.main import main
from interp.results.storage import load
from tests.vision_models import built, picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    model, processor = built("llava")
    processor.save_pretrained(path)
    model.save_pretrained(path)
    picture(0, 96, 64).save(path / "seen.png")
    (path / "asked.txt").write_text("w1 w2 w3")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["interp", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_probe_and_report(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    given = ("--text", folder / "asked.txt", "--image", folder / "seen.png", "--probes", "image_attention,text_sinks")
    assert run(monkeypatch, "probe", folder, *given, "--out", tmp_path) == 0
    seen = load(tmp_path / "image_attention.nc")
    assert (seen.modality.values == "image").sum() == 16
    assert float(seen.box.values[5, 2]) <= 96
    assert run(monkeypatch, "report", folder, *given, "--out", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert r"data:image\u002fjpeg;base64," in page
    assert "images=[" in page, "the lines that repeat the run name the picture"


def test_generate(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    asked = ("--prompt", "w1 <image> w2", "--max-new-tokens", 3, "--json")
    assert run(monkeypatch, "generate", folder, *asked, "--image", folder / "seen.png") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompt_tokens"] > 16
    assert run(monkeypatch, "generate", folder, "--prompt", "w2", "--image", folder / "seen.png", "--json") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--image", "no.png", "--text", "asked.txt"), "there is no image no.png"),
        (("--image", "asked.txt", "--text", "asked.txt"), "no image that can be read"),
        (("--image", "seen.png"), "a picture goes with a text"),
        (("--image", "seen.png", "--text", "asked.txt", "--tokens", "5"), "leave --tokens out"),
        (("--text", "asked.txt", "--probes", "visual_sinks"), "reads texts with images"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(folder)
    assert run(monkeypatch, "probe", folder, *arguments, "--out", tmp_path / "out") == 2
    errors = capsys.readouterr().err.strip()
    assert said in errors
    assert errors.count("\n") == 0
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
