"""A study's report: safe, self-contained, and it says what the numbers say."""

from __future__ import annotations

import html
import json
import math
import re

import pytest

from interp.icl.studies import between, report
from tests.icl.studies.toy_study import EVIL, ToyStudy


@pytest.fixture
def files(tmp_path):
    study = ToyStudy()
    return report.write(study, study.run(tmp_path), tmp_path, "interp icl toy --out x")


def test_the_page_is_self_contained_and_safe(files):
    page = files["html"].read_text()
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'; ")
    body = page.partition("<body>")[2]
    assert not re.search(r'\s(src|srcset|action)="', re.sub(r"<script>.*?</script>", "", body, flags=re.S))
    assert "<script>alert(1)" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4, "title, source, caption and choice, as text"


def test_both_forms_say_the_verdicts(files):
    for path in files.values():
        text = path.read_text()
        for wanted in (
            "Of 3 claims: 1 reproduced, 1 not reproduced, 1 not measured (quick).",
            "≥ 4",
            "the mean weight is 3.000",
            "± is one standard error over repeated runs",
            "interp icl toy --out x",
        ):
            assert wanted in text, (path, wanted)


def test_markdown_rows_stay_rows(files):
    markdown = files["markdown"].read_text()
    assert EVIL not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| the weight")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6, 6, 6]


def test_python_lines_name_all_settings(files):
    assert "studies.make(&#39;toy&#39;, quick=False, seeds=2, steps=50)" in files["html"].read_text()


def test_rows_are_json(tmp_path):
    study = ToyStudy(seeds=1)
    rows = json.loads(json.dumps(report.as_rows(study.verdicts(study.run(tmp_path))), allow_nan=False))
    assert [row["verdict"] for row in rows] == ["reproduced", "not reproduced", "not measured (quick)"]
    assert rows[0]["se"] is None


def test_infinity_is_no_number_in_json():
    """A roll-out that overflows has an infinite loss."""
    (row,) = json.loads(json.dumps(report.as_rows([between("", "", math.inf, low=1)]), allow_nan=False))
    assert (row["ours"], row["found"], row["verdict"]) == (None, "inf", "reproduced")


def test_without_repeats_no_error_is_explained(tmp_path):
    study = ToyStudy(seeds=1)
    files = report.write(study, study.run(tmp_path), tmp_path)
    assert not [path for path in files.values() if "one standard error" in path.read_text()]
