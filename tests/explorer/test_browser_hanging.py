"""In a real browser: a result file that hangs whoever decodes it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.explorer.browsing import Tab

HANGING = Path(__file__).with_name("hanging.nc")
"""A damaged result: HDF5 walks around in it for ever."""
RUNNING = "[data-testid=stApp][data-test-script-state=running]"
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def test_a_file_that_hangs_leaves_other_tabs_alive(chromium, server, tab, tmp_path):
    """Its decoder has four seconds of computing; meanwhile another tab of the same explorer answers."""
    hanging, tables = tmp_path / "hanging", tmp_path / "tables"
    hanging.mkdir()
    tables.mkdir()
    shutil.copy(HANGING, hanging)
    (tables / "t.csv").write_text("a,b\n1,2\n3,4\n")
    other = Tab(chromium.new_page(viewport={"width": 1280, "height": 800}), server.url, server.address).open("studies")
    folder = other.page.get_by_role("textbox", name="Results folder")
    folder.fill(str(tables))
    tab.page.goto(f"{tab.url}/studies?folder={hanging}")
    tab.settle()
    tab.start_button().click()
    tab.page.wait_for_selector(RUNNING, timeout=10_000, state="attached")

    began = time.monotonic()
    folder.press("Enter")
    other.page.get_by_text("2 rows").wait_for(timeout=10_000)
    answered = time.monotonic() - began
    assert tab.page.locator(RUNNING).count(), f"the first tab was done when the other had answered ({answered:.1f} s)"
    assert answered < 4

    tab.settle(60)
    assert "it takes longer to read than any does" in " ".join(tab.text().split())
    other.page.close()
