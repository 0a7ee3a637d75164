"""The HTML report is one safe file that says what was run and what was found, or it is not there."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from interp import figures
from interp.errors import InterpError
from interp.figures._text import visible
from interp.probes import available
from interp.report import write_report
from tests.example_results import example_results
from tests.examples import example
from tests.report.reported_sinks import ReportedSinks


class Page(HTMLParser):
    """Tags, scripts and text of a page, as a browser would read them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags, self.scripts, self.text, self.cells = [], [], "", []
        self._within = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within == "script":
            self.scripts[-1] += data
        elif self._within != "style":
            self.text += data

    def find(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_page_has_plotly_once_and_a_figure_of_every_result(results, run, probes, tmp_path):
    path = write_report(results, run, tmp_path / "new" / "report.html", probes)
    page = read(path)
    assert path.stat().st_size < 12_000_000
    assert path.read_text(encoding="utf-8").count(get_plotlyjs()[:200]) == 1
    every = [name for result in results for name in figures.figures_of(result)]
    assert {"channel_surface", "rank_map", "sink_map", "logit_lens"} < set(every)
    assert [attrs["data-figure"] for attrs in page.find("figure")] == every
    specs = [
        json.loads(script) for attrs, script in zip(page.find("script"), page.scripts, strict=True) if attrs.get("type")
    ]
    assert len(specs) == len(every)
    assert all(spec["data"] for spec in specs)


def test_page_fetches_nothing_and_runs_only_its_own_scripts(results, run, probes, tmp_path):
    page = read(write_report(results, run, tmp_path / "report.html", probes))
    assert not [attrs for _, attrs in page.tags if {"src", "srcset", "action", "data"} & set(attrs)]
    assert all(attrs["href"].startswith("#") for attrs in page.find("a"))
    assert not page.find("link")
    assert not page.find("img")
    assert not page.find("iframe")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]

    policy = next(attrs["content"] for attrs in page.find("meta") if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    programs = [
        script for attrs, script in zip(page.find("script"), page.scripts, strict=True) if not attrs.get("type")
    ]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(p.encode()).digest()).decode()}'" for p in programs]
    assert len(programs) == 2
    assert policy.partition("script-src ")[2].split() == hashes


def test_hostile_text_is_text(results, run, probes, tmp_path):
    page = read(write_report(results, run, tmp_path / "report.html", probes))
    evil = r"<script>alert(1)</script>`|\n\x00[x](javascript:alert(2))"
    assert page.text.count(f"org/model {evil}") >= 3, "in the title, the heading and the facts"
    assert f"essay {evil}" in page.text
    assert f"4 layers, threshold 0.8: {evil}" in page.text
    assert page.text.count("<script>alert(1)</script") > 3
    assert len(page.find("script")) == 2 + len(page.find("figure")), "two of the page, and a figure's data each"
    assert not any("alert(1)" in script and "<" in script for script in page.scripts[:-2])


def test_page_says_what_was_run_and_found(results, run, probes, tmp_path):
    text = read(write_report(results, run, tmp_path / "report.html", probes)).text
    for fact in (
        "300 tokens",
        "load 1.2 s, probe 2.5 s (together 3.8 s)",
        "Some CPU @ 3 GHz",
        "2.13.0",
        "interp report 'a|b' --text x.txt",
    ):
        assert fact in text, fact
    assert "Example of text_sinks." in text
    assert "one logarithmic colour scale" in text
    for column in ("sink at", "sink token", "share", "Ψ", "rank 90 %", "key imbalance", "value imbalance"):
        assert column in text, column


def test_findings_come_from_the_probes_of_that_name_by_default(results, run, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.probes.available", lambda: {"text_sinks": ReportedSinks})
    text = read(write_report(results, run, tmp_path / "report.html")).text
    assert "4 layers, threshold 0.3: " in text


def test_table_holds_the_numbers_of_each_layer(results, run, tmp_path):
    sinks, ranks = results["text_sinks"], results["attention_rank"]
    sinks["primary_sink"][2], sinks["primary_sink_share"][2], sinks["psi"][2] = 8, 0.4567, 1234.5
    ranks["rank90"][2] = [5, 7, 33, 33]
    ranks["rank90"][3] = [33, 33, 33, 1]
    results["channel_imbalance"]["max_over_median"].loc[{"tensor": "key", "layer": 2}] = 250.4
    page = write_report(results, run, tmp_path / "report.html", probes=[]).read_text(encoding="utf-8")
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(<td.*?)</tr>", page)]
    cells = [html.unescape(re.sub("<[^>]+>", "", cell)) for cell in rows[2]]
    assert cells[:7] == ["2", "8", "|", "45.7%", "1,234", "20", "250×"]
    assert html.unescape(rows[3][5]) == ">32"


@pytest.mark.parametrize("name", available())
def test_report_shows_what_is_there(name, tmp_path):
    result = example(name, layers=4, heads=4, kv_heads=2, width=16, tokens=300)
    page = read(write_report({name: result}, {}, tmp_path / "report.html", probes=[]))
    assert {"id": name} in page.find("section")
    assert page.text.count(result.attrs["description"]) == 1
    assert ("sink token" in page.text) == (name == "text_sinks")
    drawn = [attrs["data-figure"] for attrs in page.find("figure")]
    assert drawn == list(figures.figures_of(name))
    for column in available()[name].columns(result):
        assert all(visible(cell, 24) in page.text for cell in column.cells)


def test_python_lines_repeat_the_run(results, run, probes, tmp_path):
    run |= {"model": "demo", "python_text": "open('x.txt').read()"}
    page = write_report(results, run, tmp_path / "report.html", probes).read_text(encoding="utf-8")
    lines = html.unescape(re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)[-1])
    ast.parse(lines)
    assert "lens = interp.load('demo')" in lines
    assert "text = open('x.txt').read()" in lines
    assert "['channel_imbalance', 'attention_rank', ReportedSinks(epsilon=0.8), 'logit_lens'], tokens=300)" in lines
    assert "import ReportedSinks" in lines, "settings that are not the defaults are written out"


def test_failure_leaves_the_old_report(results, run, tmp_path):
    path = write_report(results, run, tmp_path / "report.html", probes=[])
    before = path.read_bytes()
    results["logit_lens"] = results["logit_lens"].drop_vars("lens_rank")
    with pytest.raises(InterpError, match="lens_rank"):
        write_report(results, run, path, probes=[])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_or_several_texts_to_report_is_refused(results, tmp_path):
    with pytest.raises(InterpError, match="nothing to report"):
        write_report({}, {}, tmp_path / "report.html")
    with pytest.raises(InterpError, match=r"about one text; choose one with results\['text_sinks'\]\.isel\(text=0\)"):
        write_report({"text_sinks": results["text_sinks"].expand_dims("text")}, {}, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_report_of_the_demo_models_shape_is_small(run, tmp_path):
    assert write_report(example_results(), run, tmp_path / "report.html", probes=[]).stat().st_size < 8_000_000
