"""Every model type in a process of its own, with limits of time and memory: what one breaks reaches no other."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from benchmarks.coverage.measure import measure

Row = dict[str, str]
MEMORY = 12 << 30


def measured(targets: list[str], jobs: int, timeout: float) -> Iterator[tuple[str, Row]]:
    """(`family:kind`, what was found of it), in the order in which they are done."""
    fork = multiprocessing.get_context("fork")  # so that nobody imports transformers twice
    waiting, running = deque(targets), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            target = waiting.popleft()
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_child, args=(target, theirs), daemon=True)
            process.start()
            theirs.close()
            running[ours] = (target, process, time.monotonic(), {})
        ready = wait(list(running), timeout=1.0)
        for pipe, (target, process, since, row) in list(running.items()):
            late = time.monotonic() - since > timeout
            if not (late or (pipe in ready and not _heard(pipe, row))):
                continue
            if late:
                process.kill()
            process.join()
            pipe.close()
            del running[pipe]
            if late or process.exitcode:
                row["end"] = f"stopped after {timeout:.0f} s" if late else f"ended with status {process.exitcode}"
            row["seconds"] = f"{time.monotonic() - since:.1f}"
            yield target, row


def _heard(pipe: Any, row: Row) -> bool:
    """Take what a process told; False at its end."""
    try:
        row.update([pipe.recv()])
    except (EOFError, ConnectionResetError):
        return False
    return True


def _child(target: str, pipe: Connection) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    family, kind = target.split(":")
    measure(family, kind, lambda name, cell: pipe.send((name, cell)))
