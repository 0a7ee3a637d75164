"""Logs of other harnesses: what is read of them, and what is said where they do not fit."""

from __future__ import annotations

import contextlib
import json
import zipfile

import numpy as np
import pytest

from interp.errors import InterpError, StorageError
from interp.studies.logs import matched, read_log
from tests.studies.logs import written

A, B = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_samples_of_lm_evaluation_harness(tmp_path):
    a, b = (read_log(written.lm_eval(tmp_path / f"{n}.jsonl", s)) for n, s in (("a", A), ("b", B)))
    table, metric, notes = matched(a, b)
    assert metric == "acc"
    assert table["a.jsonl"].tolist() == A
    assert table["b.jsonl"].tolist() == B
    assert table["cluster"].nunique() == 8
    assert any("Every sample counts as its own cluster" in note for note in notes)


def test_clusters_are_a_field_of_the_document(tmp_path):
    docs = [{"meta": {"page": i // 2}, "article": "x"} for i in range(8)]
    path = written.lm_eval(tmp_path / "a.jsonl", A, docs)
    other = written.lm_eval(tmp_path / "b.jsonl", B, docs)
    table, _, notes = matched(read_log(path, "meta.page"), read_log(other, "meta.page"))
    assert table["cluster"].tolist() == [str(i // 2) for i in range(8)]
    assert notes == []
    with pytest.raises(StorageError, match=r"no field 'meta.pages'.*article"):
        read_log(path, "meta.pages")
    with pytest.raises(StorageError, match="several values"):
        read_log(path, "meta")


def test_other_questions_and_missing_samples_are_said(tmp_path):
    a = read_log(written.lm_eval(tmp_path / "a.jsonl", A))
    docs = [{"question": f"what is {i}?", "article": i // 4} if i != 2 else {"question": "else"} for i in range(6)]
    b = read_log(written.lm_eval(tmp_path / "b.jsonl", B[:6], docs))
    table, _, notes = matched(a, b)
    assert table["item"].tolist() == ["0", "1", "3", "4", "5"]
    assert any(note.startswith("2 samples of") and "are not in" in note and note.endswith("6, 7.") for note in notes)
    assert any("1 samples have the same id but ask something else" in note for note in notes)


def test_filters_are_metrics_of_their_own(tmp_path):
    path = written.lm_eval(tmp_path / "a.jsonl", A, filter="strict")
    other = written.lm_eval(tmp_path / "more.jsonl", B, filter="flexible")
    path.write_text(path.read_text() + other.read_text())
    log = read_log(path)
    assert log.samples["2"].scores == {"acc,strict": 1.0, "acc,flexible": 0.0}
    with pytest.raises(InterpError, match=r"several metrics.*--metric: acc,flexible, acc,strict"):
        matched(log, log)
    assert matched(log, log, "acc,strict")[1] == "acc,strict"
    with pytest.raises(InterpError, match="no metric 'acc'; both have acc,flexible"):
        matched(log, log, "acc")


def test_metrics_of_older_versions_stand_beside_the_rest(tmp_path):
    path = written.lm_eval(tmp_path / "a.jsonl", A)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k not in ("metrics", "filter", "doc_hash")} for row in rows]
    path.write_text("\n".join(json.dumps({**row, "word_perplexity": [-3.0, 7], "f1": True}) for row in kept))
    assert read_log(path).samples["0"].scores == {"acc": 1.0, "f1": 1.0}
    assert read_log(path).samples["0"].question


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_eval_logs(tmp_path, compression):
    grades = ["C", "I", "P", "N", True, 0.25, "yes", "0.5"]
    log = read_log(written.inspect_ai(tmp_path / "a.eval", written.summaries(grades, epochs=2), compression))
    assert [s.scores["match"] for s in log.samples.values()] == [1, 0, 0.5, 0, 1, 0.25, 1, 0.5]
    assert [s.cluster for s in log.samples.values()] == ["s0", "s0", "s1", "s1", "s2", "s2", "s3", "s3"]
    _, _, notes = matched(log, log)
    assert notes == []
    by_image = read_log(tmp_path / "a.eval", "image")
    assert {s.cluster for s in by_image.samples.values()} == {"picture 0", "picture 1"}


def test_scores_of_inspect_that_are_none_or_several(tmp_path):
    values = ["C", float("nan"), "what?", {"style": 0.5, "facts": "C", "words": "many"}, [1, 2], None]
    log = read_log(written.inspect_ai(tmp_path / "a.eval", written.summaries(values)))
    assert [s.scores for s in log.samples.values()] == [
        {"match": 1.0}, {}, {}, {"match.style": 0.5, "match.facts": 1.0}, {}, {},
    ]  # fmt: skip


def test_a_run_that_did_not_end_and_one_in_json(tmp_path):
    rows = written.summaries(["C", "I", "C", "I"])
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as archive:
        archive.writestr("_journal/summaries/1.json", json.dumps(rows[:2]))
        archive.writestr("_journal/summaries/2.json", json.dumps(rows[2:]))
    (tmp_path / "b.json").write_text(json.dumps({"version": 2, "samples": rows}))
    table, _, _ = matched(read_log(tmp_path / "a.eval"), read_log(tmp_path / "b.json"))
    assert table["a.eval"].tolist() == table["b.json"].tolist() == [1, 0, 1, 0]


def test_names_tell_logs_apart(tmp_path):
    one, two = (written.lm_eval(tmp_path / n / "samples.jsonl", A) for n in ("full", "snapkv"))
    assert list(matched(read_log(one), read_log(two))[0].columns[2:]) == ["full/samples.jsonl", "snapkv/samples.jsonl"]
    assert list(matched(read_log(one), read_log(one))[0].columns[2:]) == [f"A: {one}", f"B: {one}"]


def test_logs_that_do_not_fit(tmp_path):
    a = read_log(written.lm_eval(tmp_path / "a.jsonl", A))
    b = read_log(written.inspect_ai(tmp_path / "b.eval", written.summaries(["C"])))
    with pytest.raises(InterpError, match="compare logs of one harness"):
        matched(a, b)
    other = read_log(written.lm_eval(tmp_path / "c.jsonl", A, [{"other": i} for i in range(8)]))
    with pytest.raises(InterpError, match="no sample in common"):
        matched(a, other)
    none = read_log(written.lm_eval(tmp_path / "d.jsonl", A, metrics=[]))
    with pytest.raises(InterpError, match="no metric in common"):
        matched(a, none)
    by = [read_log(tmp_path / "a.jsonl", "article"), read_log(tmp_path / "a.jsonl", "doc_id")]
    with pytest.raises(InterpError, match="different clusters"):
        matched(*by)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "no samples"),
        ("a.jsonl", b"[1]\n", "line 1 of .*no sample"),
        ("a.jsonl", b'{"doc_id": 1}\n{"doc_id": 1}\n', "line 2 of .*again"),
        ("a.jsonl", b'{"doc_id": 1}\n{"doc_id"', "line 2 of .*no JSON"),
        ("a.jsonl", b"[" * 200_000, "nested too deeply|no JSON"),
        ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"doc_id": 1, "acc": ' + b"9" * 10_000 + b"}", "no JSON"),
        ("a.json", b"{}", "no log of inspect_ai"),
        ("a.json", b'{"samples": []}', "no samples"),
        ("a.json", b'{"samples": [3]}', "no id"),
        ("a.json", b'{"samples": [{"id": 1, "epoch": "x"}]}', "epoch"),
        ("a.json", b'{"samples": [{"id": 1}, {"id": 1}]}', "twice"),
        ("a.eval", b"", "no .eval log"),
        ("a.eval", b"PK\x05\x06" + b"\0" * 18, "no summaries"),
        ("a.eval", b"PK\x01\x02" * 600_000, "files in it"),
        ("a.txt", b"", "no log that is known"),
    ],
)
def test_hostile_files_are_one_sentence(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(StorageError, match=words) as error:
        read_log(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_numbers_that_are_none(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"doc_id": 1, "acc": ' + "9" * 400 + ', "f1": 0.5}')
    assert read_log(tmp_path / "a.jsonl").samples["1"].scores == {"f1": 0.5}


def test_what_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    path = written.inspect_ai(tmp_path / "a.eval", [{"id": 1, "epoch": 1, "input": "a" * 5_000_000}])
    assert path.stat().st_size < 20_000
    monkeypatch.setattr("interp.studies.logs.inspect_ai.MOST_BYTES", 1_000_000)
    with pytest.raises(StorageError, match="unpacks to more than 1,000,000 bytes"):
        read_log(path)


def test_damaged_and_foreign_zips(tmp_path):
    path = written.inspect_ai(tmp_path / "a.eval", written.summaries(["C", "I"] * 40))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            broken[place] = rng.integers(256)
        path.write_bytes(bytes(broken))
        with contextlib.suppress(StorageError):  # nothing else may come out
            read_log(path)
    path.write_bytes(data.replace(b"\x08\x00", b"\x5d\x00"))  # says that it is compressed otherwise
    with pytest.raises(StorageError):
        read_log(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("summaries.json", "[]")
    with pytest.raises(StorageError, match="method 12"):
        read_log(path)
