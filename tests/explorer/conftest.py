"""The explorer served for tests in a real browser."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.chromium import CHROMIUM, FLAGS
from tests.explorer.browsing import Tab
from tests.explorer.serving import Server, served

MAIN = sys.modules["__main__"]


@pytest.fixture(autouse=True)
def _main_module_put_back() -> Iterator[None]:
    """AppTest leaves the app in the place of `__main__`, which processes that other tests spawn would then run."""
    yield
    sys.modules["__main__"] = MAIN


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH: make browser installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, server) -> Iterator[Tab]:
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    yield Tab(page, server.url, server.address)
    page.close()
