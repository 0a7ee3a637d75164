"""What a file does to its decoder, it does to nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from interp.errors import StorageError
from interp.files import apart


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Less patience than users have: one second of computing."""
    monkeypatch.setattr(apart, "SECONDS", 1)


@pytest.mark.parametrize(("word", "why"), [(b"eat", "expands to more than it may"), (b"say", "breaks the library")])
def test_memory_is_bounded_there_and_here(word, why):
    """A decoder may not use more than a limit, and may not send more either."""
    with pytest.raises(StorageError, match=why):
        apart.decoded("tests.files.greedy", word, "x is not a result")


def test_a_decoder_that_hangs_or_dies_is_a_sentence_and_freezes_nothing():
    ticks = []
    stop = threading.Event()

    def tick():
        while not stop.wait(0.01):
            ticks.append(time.monotonic())

    clock = threading.Thread(target=tick)
    clock.start()
    for content, why in ((b"hang", "takes longer to read"), (b"die", "breaks the library"), (b"print", "no decoder")):
        with pytest.raises(StorageError, match=rf"x is not a result, or is .*{why}"):
            apart.decoded("tests.files.greedy", content, "x is not a result")
    stop.set()
    clock.join()
    assert max(np.diff(ticks)) < 0.5
    about, pieces = apart.decoded("tests.files.greedy", b"fine", "x is not a result")
    assert (about, [bytes(piece) for piece in pieces]) == ({"said": "fine"}, [b"fine"])


def test_a_decoder_may_open_no_file():
    with pytest.raises(StorageError, match="Too many open files"):
        apart.decoded("tests.files.greedy", b"open", "x is not a result")


def test_no_process_is_left_behind():
    code = (
        "from interp.files.apart import decoded, _IDLE\n"
        "decoded('tests.files.greedy', b'fine', 'x')\n"
        "print(*[child.process.pid for children in _IDLE.values() for child in children])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    with pytest.raises(ProcessLookupError):
        os.kill(int(out), 0)
