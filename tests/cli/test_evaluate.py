"""`interp evaluate` on a tiny model that sees, from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import interp
from interp.cli.main import main
from interp.results.storage import load
from tests.tasks.answered import PUBLISHED
from tests.vision_models import built


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    model, processor = built("llava")
    processor.save_pretrained(path)
    model.save_pretrained(path)
    return path


def run(patch: pytest.MonkeyPatch, *arguments: object) -> int:
    patch.setattr("sys.argv", ["interp", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_table_and_a_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder, out = PUBLISHED["pope"](tmp_path), tmp_path / "pope.nc"
    given = (model, "--task", "pope:strategy=random", "--folder", folder, "--out", out, "--items", 3, "--device", "cpu")
    assert run(monkeypatch, *given) == 0
    told = capsys.readouterr()
    result = load(out)
    assert result.sizes["item"] == 3
    assert result.attrs["command"].startswith("interp evaluate")
    assert "accuracy" in told.out
    assert f"wrote {out}" in told.out
    rows = interp.tasks.summary(result)
    assert f"{rows.estimate[0]:.4f}" in told.out


def test_json_and_what_changed_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    out = tmp_path / "counted.nc"
    given = (model, "--task", "counting:scenes=2,questions=1", "--out", out, "--with", "streaming_llm:budget=500")
    assert run(monkeypatch, *given, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["summary"][0]["measure"] == "accuracy"
    assert told["run"]["task"] == "counting"
    assert sum(told["notes"].values()) == 2
    assert run(monkeypatch, *given) == 0
    told = capsys.readouterr()
    assert "note: streaming_llm dropped nothing" in told.err
    assert "UserWarning" not in told.err
    assert "under streaming_llm" in told.out


def test_tasks_are_listed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert run(monkeypatch, "--list") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in interp.tasks.available())
    assert run(monkeypatch, "--list", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == set(interp.tasks.available())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m", "--task", "pope"), "interp evaluate MODEL --task NAME --out FILE.nc"),
        (("m", "--task", "pope", "--out", "x.csv"), "end it in .nc"),
        (("m", "--task", "pop", "--out", "x.nc"), "did you mean 'pope'"),
        (("m", "--task", "mmvp", "--out", "x.nc"), "mmvp reads a folder"),
        (("m", "--task", "counting", "--folder", ".", "--out", "x.nc"), "leave --folder out"),
        (("m", "--task", "pope", "--folder", ".", "--out", "x.nc"), "pope finds no"),
        (("m", "--task", "pope", "--with", "snap", "--out", "x.nc"), "there is no intervention 'snap'"),
        (("m", "--task", "pope", "--device", "gpu", "--out", "x.nc"), "--device is cpu, cuda"),
        (("m", "--task", "pope", "--device", "cuda:99", "--out", "x.nc"), "leave --device out"),
        (("m", "--task", "pope", "--out", "absent/\x01/../x/y.nc", "--items", "0"), ""),
    ],
)
def test_mistakes_are_a_sentence_before_the_model_is_loaded(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("interp.cli.evaluate.loaded", lambda *a: pytest.fail("the model was loaded"))
    assert run(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "Traceback" not in told.err
    assert not list(tmp_path.iterdir())
