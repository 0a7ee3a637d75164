"""The explorer as a user starts it: `interp app` in a process of its own, up while a test or the pictures need it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from interp.files.private import cache_home


@dataclass(frozen=True)
class Server:
    port: int
    process: subprocess.Popen
    began: float
    """When the process was started, by `time.monotonic`."""
    temporary: Path | None
    """The folder that it takes for temporary files; None: the system's."""
    address: str
    """What it printed: where it is, with the token."""

    @property
    def url(self) -> str:
        return self.address.partition("/?token=")[0]

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
    with tempfile.TemporaryFile("w+b") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "interp.cli", "app", "--port", str(port), "--no-browser"],
            stdout=said,
            env=os.environ | moved,
        )
        try:
            address = _printed_address(said, process)
            _wait_for_an_answer(address)
            yield Server(port, process, began, temporary, address)
        finally:
            process.terminate()
            process.wait(30)


def _printed_address(said: IO[bytes], process: subprocess.Popen) -> str:
    for _ in range(600):
        said.seek(0)
        if found := re.search(rb"http://\S+token=\S+", said.read()):
            return found[0].decode()
        assert process.poll() is None, "the explorer ended before it said where it is"
        time.sleep(0.1)
    raise TimeoutError("the explorer does not say where it is")


def _wait_for_an_answer(address: str) -> None:
    for _ in range(600):
        try:
            # without a cookie the token is asked for again where the address leads on to
            urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(address, timeout=5).close()
            return
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"the explorer does not answer at {address}")
