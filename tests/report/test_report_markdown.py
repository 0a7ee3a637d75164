"""The Markdown report says the same, survives any token text, and lies beside its results."""

from __future__ import annotations

import html
import re

import pytest
import xarray as xr
from markdown_it import MarkdownIt

from interp.report import write_markdown
from interp.report.markdown import escape
from interp.results import storage
from tests.example_results import HOSTILE


def rendered(text: str) -> str:
    """HTML of CommonMark with GitHub's tables, strikethrough and links, raw HTML let through."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


def test_results_lie_beside_the_report(results, run, probes, tmp_path):
    path = write_markdown(results, run, tmp_path / "out" / "report.md", probes)
    assert {file.name for file in path.parent.iterdir()} == {"report.md"} | {f"report.{name}.nc" for name in results}
    for name, result in results.items():
        xr.testing.assert_identical(storage.load(path.with_name(f"report.{name}.nc")), result)
    links = re.findall(r'<a href="([^"]+)"', rendered(path.read_text(encoding="utf-8")))
    assert links == [f"report.{name}.nc" for name in results]


def test_markdown_says_what_was_run_and_found(results, run, probes, tmp_path):
    page = rendered(write_markdown(results, run, tmp_path / "report.md", probes).read_text(encoding="utf-8"))
    text = html.unescape(re.sub("<[^>]+>", "", page))
    evil = r"<script>alert(1)</script>`|\n\x00[x](javascript:alert(2))"
    for part in (
        f"org/model {evil}",
        f"essay {evil}",
        f"4 layers, threshold 0.8: {evil}",
        "load 1.2 s, probe 2.5 s",
        "Some CPU @ 3 GHz",
    ):
        assert part in text, part
    assert "interp report 'a|b' --text x.txt" in text
    assert "interp.load(" in text
    assert "<script" not in page
    assert "<img" not in page
    assert "javascript:" not in "".join(re.findall("<[^>]+>", page))


def test_table_has_a_row_a_layer_with_the_token_as_it_is(results, run, tmp_path):
    results["text_sinks"]["primary_sink"][:] = [0, 8, 16, 32]  # <script>, |, ` and a line break
    page = rendered(write_markdown(results, run, tmp_path / "report.md", []).read_text(encoding="utf-8"))
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    cells = [[html.unescape(cell) for cell in row] for row in rows if row]
    assert [row[:3] for row in cells] == [
        ["0", "0", "“<script>alert(1)</scrip…”"], ["1", "8", "“|”"], ["2", "16", "“`”"], ["3", "32", r"“\n”"],
    ]  # fmt: skip
    assert {len(row) for row in cells} == {8}


SHOWN = {"\n": r"\n", "\t": r"\t", "\x00": r"\x00", "\x1b[31m": r"\x1b[31m", "\u202eevil": r"\u202eevil"}


@pytest.mark.parametrize(
    "text",
    [
        *HOSTILE,
        "1. one",
        "12) x",
        "- a",
        "+",
        "# h",
        "===",
        "~~a~~",
        "a_b_c",
        "&lt;",
        "<!-- x",
        "https://a.b www.a.b",
        "!",
    ],
)
@pytest.mark.parametrize("before", ["- ", "| a | b |\n| - | - |\n| x | ", ""])
def test_any_text_comes_out_of_markdown_as_it_went_in(text, before):
    page = rendered(before + escape(text) + (" |" if "|" in before else ""))
    tags = set(re.findall(r"</?(\w+)", page)) - {"p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert not tags, page
    plain = html.unescape(re.sub("<[^>]+>", "", page)).split()
    assert "".join(plain).endswith("".join(SHOWN.get(text, text).split()))


def test_code_blocks_outlast_backticks(results, run, tmp_path):
    run["command"] = "interp report ```` <b> --x"
    page = rendered(write_markdown(results, run, tmp_path / "report.md", []).read_text(encoding="utf-8"))
    assert '<pre><code class="language-sh">interp report ```` &lt;b&gt; --x\n</code></pre>' in page


def test_failure_leaves_the_old_report(results, run, tmp_path):
    path = write_markdown(results, run, tmp_path / "report.md", [])
    before = path.read_bytes()
    results["logit_lens"].attrs["broken"] = object()
    with pytest.raises(storage.StorageError, match="broken"):
        write_markdown(results, run, path, [])
    assert path.read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if file.suffix == ".part"]
