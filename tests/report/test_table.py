"""The table of a report takes its columns from the results: nothing else need know a new probe."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import xarray as xr

from interp.probes.base import Context, Fold, Probe
from interp.report import write_markdown, write_report
from interp.report.content import content_of
from interp.results.columns import Column, layer_columns, number
from tests.report.reported_sinks import EVIL


@dataclass(frozen=True)
class New(Probe):
    """A probe that no other file knows; never run here."""

    name: ClassVar[str] = "new"

    def begin(self, context: Context) -> Fold:
        raise AssertionError("a report runs nothing")


@dataclass(frozen=True)
class Choosy(New):
    """One that says itself what belongs in the table."""

    name: ClassVar[str] = "choosy"

    @classmethod
    def columns(cls, result: xr.Dataset) -> list[Column]:
        return [Column("twice", "two times the norm", [number(2 * x) for x in result["mean_norm"].values])]


@pytest.fixture
def result() -> xr.Dataset:
    described = lambda units, what: {"units": units, "description": what}  # noqa: E731
    return xr.Dataset(
        {
            "mean_norm": ("layer", [1234.5, 0.12345, np.nan, -250.4], described("1", "mean norm of the stream")),
            "best_head": ("layer", [0, 12, 1234, 7], described("head", "head that moves it most")),
            "word": ("layer", np.array(["the", EVIL, "|", "\n"], object), described("text", "token that moved most")),
            "by_head": (("layer", "head"), np.ones((4, 2)), described("1", "of each head")),
            "alone": ((), 1.0, described("1", "of the model")),
        },
        {"layer": [0, 1, 2, 3], "head": [0, 1]},
        {"title": "New", "description": "Something new"},
    )


def test_what_has_one_value_a_layer_is_a_column(result):
    assert layer_columns(result) == [
        Column("mean norm", "mean norm of the stream", ["1,234", "0.123", "–", "-250"]),
        Column("best head", "head that moves it most, in head", ["0", "12", "1,234", "7"]),
        Column("word", "token that moved most", ["the", EVIL, "|", "\n"], is_token=True),
    ]
    assert layer_columns(result.isel(layer=0)) == []


@pytest.mark.parametrize("probes", [[New()], [], None], ids=["its probe", "no probe", "the library's probes"])
def test_a_new_probe_is_in_both_reports(result, results, run, probes, tmp_path):
    both = {"text_sinks": results["text_sinks"], "new": result}
    if probes is None:
        both.pop("text_sinks")  # an example, which has not all that its findings name
    page = write_report(both, run, tmp_path / "report.html", probes).read_text(encoding="utf-8")
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(<td.*?)</tr>", page)]
    cells = [[html.unescape(re.sub("<[^>]+>", "", cell)) for cell in row] for row in rows]
    assert [row[1] for row in cells] == ["1,234", "0.123", "–", "-250"]
    assert [row[3] for row in cells] == ["the", "<script>alert(1)</scrip…", "|", r"\n"]
    assert "<b>mean norm</b>: mean norm of the stream; " in page
    body = page.partition("<body")[2]
    assert "<script>alert(1)</script>`" not in body
    written = write_markdown(both, run, tmp_path / "report.md", probes).read_text(encoding="utf-8")
    assert "| mean norm | best head | word |" in written
    assert not [line for line in written.splitlines() if line.startswith("|") and "<script" in line]


def test_a_probe_may_choose(result):
    table = content_of({"choosy": result.isel(layer=[0, 1, 3])}, {}, [Choosy()]).table
    assert table.columns[1:] == [("twice", "two times the norm", False)]
    assert table.rows == [["0", "2,469"], ["1", "0.247"], ["3", "-501"]]


def test_words_come_first_then_names(result):
    others = {name: result[["best_head"]] for name in ("b", "a")}
    table = content_of({**others, "z": result}, {}, []).table
    assert [title for title, _, _ in table.columns] == ["layer", "mean norm", "best head", "word", *["best head"] * 2]


def test_layers_that_a_result_lacks_are_dashes(result):
    table = content_of({"a": result[["best_head"]].isel(layer=[1]), "b": result[["best_head"]]}, {}, []).table
    assert [row[1] for row in table.rows] == ["–", "12", "–", "–"]
    assert [row[0] for row in table.rows] == ["0", "1", "2", "3"]
