"""`interp compare-logs`: a table and sentences for a person, JSON for a program, one line for a mistake."""

from __future__ import annotations

import json

import numpy as np
import pytest

from interp.cli import main
from tests.studies.logs import written


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["interp", "compare-logs", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def logs(tmp_path):
    rng = np.random.default_rng(0)
    full = (rng.random(200) < 0.7).astype(float)
    small = np.where(rng.random(200) < 0.3, 0.0, full)
    return [written.lm_eval(tmp_path / f"{n}.jsonl", list(s)) for n, s in (("full", full), ("small", small))]


def test_for_a_person(monkeypatch, capsys, logs):
    code, out, err = run(monkeypatch, capsys, *logs, "--cluster", "article", "--margin", "0.02")
    assert (code, err) == (0, "")
    assert "acc, logs of lm-evaluation-harness, clusters: article" in out
    assert "small.jsonl is worse than full.jsonl by" in out
    assert "200 items in 50 clusters" in out
    assert "\\n" not in out
    assert "It is not shown that small.jsonl loses less than 0.02" in out
    assert "items right" in out


def test_for_a_program(monkeypatch, capsys, logs):
    code, out, _ = run(monkeypatch, capsys, *logs, "--json")
    told = json.loads(out)
    assert code == 0
    assert set(told) == {"run", "difference", "shares", "notes"}
    (row,) = told["difference"]
    assert row["low"] < row["difference"] < row["high"] < 0
    assert row["clusters"] == 200
    assert "own cluster" in told["notes"][0]
    code, out, _ = run(monkeypatch, capsys, logs[0], logs[0], "--json")
    assert json.loads(out)["difference"][0]["low"] is None


def test_mistakes_are_one_line(monkeypatch, capsys, logs, tmp_path):
    mistakes = [
        ([tmp_path / "absent.jsonl", logs[1]], "there is no log"),
        ([tmp_path, logs[1]], "no log that is known"),
        ([*logs, "--metric", "f1"], "no metric 'f1'; both have acc"),
        ([*logs, "--cluster", "page"], "no field 'page'"),
        ([*logs, "--better", "up"], "--better is higher or lower"),
        ([*logs, "--margin", "-1"], "margin is a positive number"),
        ([written.lm_eval(tmp_path / "one.jsonl", [1.0])] * 2, "at least two clusters"),
        ([written.lm_eval(tmp_path / "inf.jsonl", [1.0, float("inf")])] * 2, "infinite"),
    ]
    for arguments, words in mistakes:
        code, out, err = run(monkeypatch, capsys, *arguments)
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1


def test_texts_of_a_log_drive_no_terminal(monkeypatch, capsys, tmp_path):
    docs = [{"page": f"\x1b[2Jpage {i % 3}"} for i in range(9)]
    path = written.lm_eval(tmp_path / "a.jsonl", [1.0, 0.0, 1.0] * 3, docs, **{"metrics": ["\x1b[31m"], "\x1b[31m": 1})
    code, out, err = run(monkeypatch, capsys, path, path, "--cluster", "page")
    assert code == 0
    assert "\x1b" not in out + err
    assert "\\x1b[31m" in out
