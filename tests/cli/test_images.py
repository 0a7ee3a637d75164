"""Pictures on the command line: probe, report and generate on a tiny model that sees, from a folder."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
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


def test_a_report_shows_what_an_edit_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    given = ("--text", folder / "asked.txt", "--image", folder / "seen.png", "--out", tmp_path / "r.html")
    edit = ("--with", "attention_bias:keys=images,bias=2")
    wanted = ("--probes", "image_attention,visual_sinks,image_logit_lens")
    assert run(monkeypatch, "report", folder, *given, *edit, *wanted, "--chat") == 0
    both = load(tmp_path / "r.before_after.nc")
    on = np.isfinite(both.box.values[:, 0])
    before, after = both.attention.isel(query=-1).mean("layer").values[:, on].sum(-1)
    assert after > before, "a bias on the image's keys draws attention there"
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    drawn = re.findall(r'<figure data-figure="(\w+)"', page)
    assert drawn[0] == "image_attention"
    assert drawn.index("image_attention_change") < drawn.index("image_heads"), "right behind what it changes"
    assert {"image_heads", "phi_by_layer", "phi_in_picture", "image_logit_lens"} <= set(drawn)
    for text in (page, (tmp_path / "r.md").read_text(encoding="utf-8")):
        assert f"gives {after:.1%} of its attention to the image, where it gives {before:.1%} without" in text
    code = html.unescape(re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)[-1])
    held: dict = {"open": open}
    exec(code.replace("interp.report.write_report", "(lambda *_: None)"), held)
    again = held["results"]["before_after"]
    np.testing.assert_allclose(again.attention.values, both.attention.values, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--text", "asked.txt", "--with", "temperature"), "pass --image FILE, and the probe image_attention"),
        (("--text", "asked.txt", "--image", "seen.png", "--with", "temperature", "--probes", "visual_sinks"),
         "and the probe image_attention"),
        (("--text", "asked.txt", "--image", "seen.png", "--with", "h2o"), "h2o is no attention edit"),
        (("--text", "asked.txt", "--image", "seen.png", "--with", "temperatur"), "did you mean 'temperature'"),
        (("--text", "asked.txt", "--chat"), "--chat is for texts with images here"),
    ],
)  # fmt: skip
def test_mistakes_about_edits_are_one_line(
    arguments: tuple[str, ...], said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(folder)
    assert run(monkeypatch, "report", folder, *arguments, "--out", tmp_path / "out.html") == 2
    errors = capsys.readouterr().err.strip()
    assert said in errors
    assert errors.count("\n") == 0
    assert not list(tmp_path.iterdir())
