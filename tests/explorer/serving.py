"""The explorer as a user starts it: `interp app` in a process of its own, up while a test or the pictures need it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interp.files.private import cache_home


@dataclass(frozen=True)
class Server:
    port: int
    process: subprocess.Popen
    began: float
    """When the process was started, by `time.monotonic`."""
    temporary: Path | None
    """The folder that it takes for temporary files; None: the system's."""

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def processor_seconds(self) -> float:
        """What it has used so far. Other programs of a busy machine make it wait, and this is without that."""
        import psutil

        first = psutil.Process(self.process.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (first, *first.children(recursive=True)))


@contextmanager
def served(temporary: Path | None = None) -> Iterator[Server]:
    """The explorer once it answers; terminated at the end. `temporary` is the folder that it takes for temporary files
    and for its cache, in which are the weights of the usual one."""
    moved = {}
    if temporary is not None:
        cache_home().joinpath("weights").mkdir(parents=True, exist_ok=True)
        (temporary / "weights").symlink_to(cache_home() / "weights")
        moved = {"TMPDIR": str(temporary), "INTERP_CACHE": str(temporary)}
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "interp.cli", "app", "--port", str(port), "--no-browser"],
        stdout=subprocess.DEVNULL,
        env=os.environ | moved,
    )
    server = Server(port, process, began, temporary)
    try:
        _wait_for_an_answer(server)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _wait_for_an_answer(server: Server) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{server.url}/_stcore/health", timeout=1) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"the explorer does not answer at {server.url}")
