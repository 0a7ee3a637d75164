"""The Python that repeats a run, executed."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.icl import studies
from interp.interventions import parse_all
from interp.probes.attention_rank import AttentionRank
from interp.probes.image_attention import ImageAttention
from interp.probes.text_sinks import TextSinks
from interp.results import repeating, storage
from interp.subjects.emoji.examples import example_picture
from tests.example_results import example_results
from tests.icl.studies.toy_study import ToyStudy

TEXT = "The capital of France is Paris, and the capital of Italy is Rome. " * 8


def done(*parts: list[str]) -> dict[str, Any]:
    """What the names of a script hold once it has run."""
    names: dict[str, Any] = {}
    exec(compile(repeating.script([line for part in parts for line in part]), "repeated.py", "exec"), names)
    return names


@given(st.lists(st.sampled_from(["import os", "from math import pi", "import ast", "x = 1", "y = x"]), max_size=12))
def test_a_script_has_every_statement_once_and_imports_first(statements):
    script = repeating.script(statements, "A title")
    body = ast.parse(script).body
    assert ast.get_docstring(ast.parse(script)) == "A title"
    kinds = [isinstance(node, ast.Import | ast.ImportFrom) for node in body[1:]]
    assert kinds == sorted(kinds, reverse=True)
    assert sorted(map(ast.unparse, body[1:])) == sorted(set(statements))
    rest = [ast.unparse(node) for node, is_import in zip(body[1:], kinds, strict=True) if not is_import]
    assert rest == [line for line in dict.fromkeys(statements) if line in ("x = 1", "y = x")]


@given(st.text(max_size=20), st.none() | st.integers() | st.text(max_size=9) | st.lists(st.booleans(), max_size=3))
def test_a_call_passes_what_it_was_given(text, value):
    got = eval(repeating.call("dict", repr([("given", text)]), setting=value), {"dict": dict})
    assert got == {"given": text, "setting": value}


def test_probes_are_repeated_with_their_settings():
    probes = [TextSinks(epsilon=(0.25,)), AttentionRank(), "channel_imbalance"]
    wanted = interp.probe(interp.load("demo"), TEXT, probes, tokens=40)
    found = done(repeating.loaded("demo", repr(TEXT)), repeating.probed(probes, 40))["results"]
    assert list(found) == ["text_sinks", "attention_rank", "channel_imbalance"]
    for name, result in wanted.items():
        xr.testing.assert_allclose(found[name].drop_attrs(), result.drop_attrs())
    assert found["text_sinks"]["epsilon"].values.tolist() == [0.25]


def test_the_weights_precision_is_repeated():
    assert repeating.loaded("a'b", "x", "float32")[1] == 'lens = interp.load("a\'b")'
    lens = done(repeating.loaded("demo", "''", "bfloat16"))["lens"]
    assert lens.cfg.dtype == "bfloat16"


@dataclass(frozen=True)
class Needy:
    """A probe whose parameter has no default."""

    width: int
    name = "needy"


def test_a_probe_without_defaults_is_written_out():
    statements = repeating.probed([Needy(3)], 8)
    names = {"interp": type("Interp", (), {"probe": staticmethod(lambda lens, text, probes, tokens: (probes, tokens))})}
    exec("\n".join(statements), names | {"lens": None, "text": ""}, held := {})
    assert held["results"] == ([Needy(3)], 8)


def test_an_intervention_is_repeated_and_explained():
    specs = ["think:ratio=0.5", "h2o:budget=0.3"]
    wanted = interp.side_by_side(interp.load("demo"), TEXT, parse_all(specs), 4)
    names = done(
        repeating.loaded("demo"), repeating.continued(TEXT, specs, 4, chat=False),
        repeating.explained(["ledger", "perturbation"], chat=False),
    )  # fmt: skip
    np.testing.assert_array_equal(names["sides"]["token_id"], wanted["token_id"])
    assert names["sides"].attrs["interventions"] == wanted.attrs["interventions"]
    assert set(names["answers"]) == {"ledger", "perturbation"}


def test_heads_are_scored_again():
    found = done(repeating.loaded("demo", repr(TEXT * 8)), repeating.heads_scored(2))["results"]["head_scores"]
    assert found["induction"].attrs["samples"] == 2


def test_figures_are_drawn_from_an_opened_result(tmp_path, monkeypatch):
    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure, *_, **__: shown.append(figure))
    path = storage.save(
        example_results(layers=4, heads=4, kv_heads=2, width=16, tokens=64)["text_sinks"], tmp_path / "a b.nc"
    )
    drawn = repeating.drawn("token_mass", "results['text_sinks']", layer=2, head=None)
    names = done(repeating.opened("text_sinks", path), drawn)
    wanted = interp.figures.token_mass(names["results"]["text_sinks"], layer=2)
    assert [figure.layout.title.text for figure in shown] == [wanted.layout.title.text]


def test_a_report_is_written_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done(repeating.loaded("demo", repr(TEXT)), repeating.probed(["channel_imbalance"], 24), repeating.reported())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Channel imbalance of keys and values" in page
    assert "interp.probe(lens, text, [&#39;channel_imbalance&#39;], tokens=24)" in page


def test_a_study_is_made_run_drawn_and_reported_again(tmp_path, monkeypatch):
    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure, *_, **__: shown.append(figure))
    monkeypatch.setattr(studies, "available", lambda: {"toy": ToyStudy})
    study, folder = ToyStudy(seeds=1, steps=20), str(tmp_path / "it's")
    names = done(
        repeating.study_made(study), repeating.study_run(folder), repeating.study_drawn("ds"),
        repeating.study_reported(folder),
    )  # fmt: skip
    assert names["study"] == study
    assert names["ds"].attrs["settings"] == study.settings()
    assert len(shown) == len(study.figures(names["ds"]))
    assert (tmp_path / "it's" / "report.html").is_file()


@pytest.mark.parametrize("name", sorted(studies.available()))
def test_every_study_is_made_again_with_all_its_settings(name):
    study = studies.make(name, quick=True)
    assert done(repeating.study_made(study))["study"] == study


@given(st.permutations(["results = {'a': 1}", "results = {'b': 2}", "results = {'c': 3}", "x = 0"]))
def test_results_of_several_statements_are_all_kept(statements):
    assert done(statements)["results"] == {"a": 1, "b": 2, "c": 3}


def test_opened_and_probed_results_lie_together(tmp_path):
    sinks = example_results(layers=2, heads=2, kv_heads=1, width=4, tokens=6)["text_sinks"]
    path = storage.save(sinks, tmp_path / "sinks.nc")
    other = storage.save(sinks, tmp_path / "other.nc")
    assert set(done(repeating.opened("a", path), repeating.opened("b", other))["results"]) == {"a", "b"}
    both = repeating.script([*repeating.probed(["text_sinks"], 8), *repeating.heads_scored(2)]).splitlines()
    assert [line.split("{")[0].split("interp.probe")[0] for line in both if line.startswith("results")] == [
        "results = ", "results |= "
    ]  # fmt: skip


def test_a_question_about_a_picture_is_repeated_with_its_answer_changed():
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a lion?"}]}]
    spec, image = "knock_out:keys=images", example_picture("three canoes, lion")
    made = ["from interp.subjects.emoji.examples import example_picture"]
    made += ["picture = example_picture('three canoes, lion')"]
    names = done(
        repeating.loaded("emoji-vlm", repr(talk)), repeating.looked_at([ImageAttention(rows=4)], made),
        repeating.changed(ImageAttention(rows=4), [spec], pictured=True),
        repeating.continued("Is there a lion?", [spec], 3, chat=True, pictured=True),
    )  # fmt: skip
    lens = names["lens"]
    before = interp.probe(lens, talk, ImageAttention(rows=4), images=image)["image_attention"]
    xr.testing.assert_allclose(names["results"]["image_attention"].drop_attrs(), before.drop_attrs())
    with lens.apply(interp.KnockOut(keys="images")):
        after = interp.probe(lens, talk, ImageAttention(rows=4), images=image)["image_attention"]
    both = names["results"]["before_after"]["attention"]
    np.testing.assert_allclose(both.sel(edited="after"), after["attention"], atol=1e-6)
    wanted = interp.side_by_side(lens, "Is there a lion?", interp.KnockOut(keys="images"), 3, chat=True, images=image)
    np.testing.assert_array_equal(names["sides"]["token_id"], wanted["token_id"])


def test_what_stands_beside_a_figure_has_its_own_name():
    line = repeating.drawn("image_attention", "results['image_attention']", "picture", layer=2, query=None)
    assert line == ["interp.figures.image_attention(results['image_attention'], picture=picture, layer=2).show()"]
