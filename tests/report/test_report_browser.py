"""The report in a real browser: every figure draws, nothing is fetched, and it opens quickly."""

from __future__ import annotations

import html
import re
import subprocess
import time
from pathlib import Path

import pytest

from interp import figures
from interp.figures._text import visible
from interp.report import write_report
from tests.chromium import CHROMIUM, FLAGS
from tests.example_results import HOSTILE, example_results

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")]


def test_every_figure_draws_without_a_complaint(run, probes, tmp_path):
    results = example_results()
    path = write_report(results, run, tmp_path / "report.html", probes)
    command = [
        CHROMIUM,
        "--headless",
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=30000",
        "--window-size=1200,9000",
    ]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "willReadFrequently" not in line]
    assert [line for line in console if "GL Driver Message" not in line] == []
    drawn = dict(re.findall(r'data-figure="(\w+)" data-drawn="(\w+)"', done.stdout))
    assert set(drawn) == {name for result in results for name in figures.figures_of(result)}
    assert all(value.isdigit() for value in drawn.values()), drawn
    assert done.stdout.count("<svg") > 14
    labels = {html.unescape(label) for label in re.findall(r'<text class="bartext[^>]*>(.*?)</text>', done.stdout)}
    assert {visible(text) for text in HOSTILE} <= labels, "hostile tokens are shown letter by letter"
    assert len(re.findall(r"<[a-z]", done.stdout.partition("<body")[2])) < 50_000


def test_figures_below_the_fold_wait(run, probes, tmp_path):
    path = write_report(example_results(), run, tmp_path / "report.html", probes)
    command = [
        CHROMIUM,
        "--headless",
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
        "--window-size=1200,1400",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    drawn = re.findall(r'data-figure="(\w+)" data-drawn="(\d+)"', done.stdout)
    assert 1 <= len(drawn) <= 2


def test_report_opens_within_two_seconds(run, probes, tmp_path):
    """Time to the load event: best of three, over that of an empty page in the same browser."""
    report = write_report(example_results(), run, tmp_path / "report.html", probes)
    empty = tmp_path / "empty.html"
    empty.write_text("<!DOCTYPE html><title>empty</title>", encoding="utf-8")

    def seconds(page: Path) -> float:
        began = time.perf_counter()
        command = [
            CHROMIUM,
            "--headless",
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ]
        subprocess.run(command, capture_output=True, timeout=60, check=True)
        return time.perf_counter() - began

    assert min(seconds(report) for _ in range(3)) - min(seconds(empty) for _ in range(3)) < 2
