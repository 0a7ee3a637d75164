"""In a real browser: in-context learning, folders of results, and the place for images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import interp
from interp.icl import studies
from interp.icl.language import head_findings, head_scores
from interp_explorer import tables
from tests.explorer.browsing import assert_draws, numbers

STUDY = "softmax-regression"  # the one whose quick form is quickest
SCORES = ["induction", "prefix_matching", "previous_token", "duplicate_token", "copying"]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the library wrote the result of a study."""
    folder = tmp_path_factory.mktemp("study")
    studies.make(STUDY, quick=True).run(folder)
    return folder


def assert_shows_the_study(tab, folder) -> None:
    ds = interp.storage.load(folder / "result.nc")
    study = studies.of_result(ds)
    for number, picture in enumerate(study.figures(ds)):
        assert_draws(tab.chart(number), picture.figure)
    cells = tab.page.locator("[data-testid=stDataFrame] td").all_inner_texts()
    for row in study.verdicts(ds)[:5]:  # the grid draws the rows that are in sight
        at = cells.index(row.claim)
        assert cells[at : at + 4] == [row.claim, row.expected, row.found, row.verdict]
    said = " ".join(tab.text().split())
    for note in study.notes(ds):
        assert " ".join(note.split()) in said


def test_heads_that_learn_in_context_are_measured(tab):
    tab.open("in_context", tokens=128)
    assert not tab.page.locator(".js-plotly-plot").count(), "nothing is measured before it is asked for"
    tab.page.get_by_text("Measure this model's heads").click()
    tab.page.wait_for_function("location.search.includes('heads=true')")
    tab.settle()
    scores = head_scores(interp.load("demo"), interp.subjects.demo_text(), samples=4)
    heat = [trace for trace in tab.chart()["data"] if trace["type"] == "heatmap"]
    for trace, name in zip(heat, SCORES, strict=True):
        np.testing.assert_allclose(numbers(trace["z"]), scores[name].transpose("layer", "head"), atol=1e-4)
    said = " ".join(tab.text().split())
    for sentence in head_findings(scores):
        assert " ".join(sentence.split()) in said
    tab.page.reload()
    tab.settle()
    assert len(tab.chart()["data"]) == len(heat), "a reload keeps the view"


def test_a_study_is_run_in_the_page(tab, server, folder):
    tab.open("in_context", study=STUDY)
    tab.page.get_by_text("Run the quick form here").click()
    tab.page.wait_for_selector(f"text=running {STUDY}", timeout=60_000)
    tab.settle()
    assert_shows_the_study(tab, folder)
    written = list(server.temporary.glob(f"private-*/studies/{STUDY}/*/result.nc"))
    assert len(written) == 1, "what is written is in a folder of this user's own"


def test_a_folder_of_a_study_is_opened(tab, folder):
    tab.open("studies")
    box = tab.page.get_by_role("textbox", name="Results folder")
    box.fill(str(folder))
    box.press("Enter")
    tab.page.wait_for_function("location.search.includes('folder=')")
    tab.settle()
    assert_shows_the_study(tab, folder)
    tab.page.reload()
    tab.settle()
    assert_shows_the_study(tab, folder)


def choose(tab, label: str, option: str) -> None:
    """Choose one more of a list."""
    box = tab.page.get_by_role("combobox", name=label, exact=True)
    box.click()
    box.fill(option)
    tab.page.locator("[role=option]").filter(has_text=option).last.click()
    tab.page.keyboard.press("Escape")
    tab.settle()


def test_a_table_is_filtered_and_its_front_drawn(tab, tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"policy": ["a", "b"] * 20, "mb": rng.uniform(size=40), "score": rng.uniform(size=40)})
    table.to_csv(tmp_path / "results.csv", index=False)

    def assert_drawn(rows: pd.DataFrame, less_y: bool) -> None:
        best = tables.pareto(rows, "mb", "score", less_x=True, less_y=less_y)
        others, front, _ = tab.chart()["data"]
        for trace, wanted in ((others, rows[~best]), (front, rows[best])):
            np.testing.assert_allclose(numbers(trace["x"]), wanted["mb"])
            np.testing.assert_allclose(numbers(trace["y"]), wanted["score"])

    tab.open("studies", folder=tmp_path)
    assert_drawn(table, less_y=True)
    tab.page.get_by_role("radio", name="more").last.click()
    tab.settle()
    assert_drawn(table, less_y=False)
    choose(tab, "Filter by", "policy")
    choose(tab, "policy", "a")
    assert_drawn(table[table["policy"] == "a"], less_y=False)
    assert "20 rows" in tab.text()
