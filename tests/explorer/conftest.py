"""The explorer served for tests in a real browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.explorer.browsing import Tab

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader",
]  # fmt: skip
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


MAIN = sys.modules["__main__"]


@pytest.fixture(autouse=True)
def _main_module_put_back() -> Iterator[None]:
    """AppTest leaves the app in the place of `__main__`, which processes that other tests spawn would then run."""
    yield
    sys.modules["__main__"] = MAIN


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen
    began: float
    """When the process was started, by `time.monotonic`."""
    temporary: Path
    """The folder that it takes for temporary files."""

    def processor_seconds(self) -> float:
        """What it has used so far. Other programs of a busy machine make it wait, and this is without that."""
        first = psutil.Process(self.process.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (first, *first.children(recursive=True)))


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """`interp app`, as a user starts it."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp("server")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "interp.cli", "app", "--port", str(port), "--no-browser"],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    url = f"http://localhost:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield Server(url, process, began, temporary)
    finally:
        process.terminate()
        process.wait(20)


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
    yield Tab(page, server.url)
    page.close()
