"""`interp icl`: lists, runs, writes, and refuses in one line."""

from __future__ import annotations

import json
import sys

import pytest

from interp import cli
from interp.icl import studies
from tests.icl.studies.toy_study import ToyStudy


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setattr(studies, "available", lambda: {"single-layer": ToyStudy, "toy": ToyStudy})

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["interp", "icl", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("arguments", [(), ("--list",)])
def test_lists_the_studies(run, arguments):
    code, out, _ = run(*arguments)
    assert (code, out.splitlines()[0].split()[0]) == (0, "single-layer")
    assert json.loads(run(*arguments, "--json")[1])["toy"] == "one weight"


def test_writes_result_and_report(run, tmp_path):
    code, out, err = run("toy", "--out", tmp_path, "--seeds", 1)
    assert (code, err) == (0, "")
    assert "Of 3 claims: 1 reproduced" in out
    assert {"result.nc", "report.html", "report.md", "settings.json"} <= {p.name for p in tmp_path.iterdir()}


def test_json_is_one_object(run, tmp_path):
    told = json.loads(run("toy", "--out", tmp_path, "--quick", "--json")[1])
    assert told["settings"] == {"quick": True, "seeds": 2, "steps": 50}
    assert [row["verdict"] for row in told["verdicts"]][:2] == ["reproduced", "not reproduced"]
    assert set(told["files"]) == {"result", "html", "markdown"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sinle-layer", "--out", "x"), "did you mean 'single-layer'"),
        (("toy",), "--out names the folder"),
        (("toy", "--list"), "leave it out to run toy"),
        (("toy", "--out", "x", "--variant", "code"), "has no setting 'variant'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, arguments, says):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


def test_another_setting_in_the_folder_is_a_users_mistake(run, tmp_path):
    run("toy", "--out", tmp_path)
    code, _, err = run("toy", "--out", tmp_path, "--seeds", 5)
    assert code == 2
    assert "seeds=2, and seeds=5" in err


def test_seeds_for_a_study_without_them_are_refused(monkeypatch):
    class Seedless(studies.Study):
        name = "seedless"

    monkeypatch.setattr(studies, "available", lambda: {"seedless": Seedless})
    with pytest.raises(studies.InterpError, match="has no setting 'seeds'; it has quick"):
        studies.make("seedless", seeds=3)


FEWER_SEEDS = [name for name, cls in studies.available().items() if cls.quick_seeds is not None]


def test_these_studies_have_fewer_seeds_when_they_are_quick():
    assert {"single-layer", "depth", "softmax-heads", "softmax-regression"} <= set(FEWER_SEEDS)


@pytest.mark.parametrize("name", FEWER_SEEDS)
def test_a_quick_study_has_the_seeds_that_it_says(name):
    """Fewer of its own accord, and as many as are asked for."""
    assert studies.make(name, quick=True).settings()["seeds"] < studies.make(name).settings()["seeds"]
    assert studies.make(name, quick=True, seeds=7).settings()["seeds"] == 7


@pytest.mark.parametrize("seeds", [0, -1, "2", 2.5, True])
def test_seeds_that_are_no_number_of_seeds_are_refused(seeds):
    with pytest.raises(studies.InterpError, match=r"depth is run from 1 seed or more, not|depth: seeds should be a"):
        studies.make("depth", seeds=seeds)


@pytest.mark.parametrize("name", studies.available())
def test_settings_of_other_types_are_refused(name):
    with pytest.raises(studies.InterpError, match="quick should be true or false"):
        studies.make(name, quick="no")


def test_a_variant_that_is_none_is_refused():
    with pytest.raises(studies.InterpError, match="variant should be one of code, paper, found 'papr'"):
        studies.make("single-layer", variant="papr")
