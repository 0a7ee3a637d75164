"""The one desk of the process: long work is done one piece after the other, for all browser tabs.

A model's hooks are global to it, so two tabs can not use it at once. Each piece of work is a `Job` with a key: a second
tab that asks for the same key waits for the same job, and one that asks for something else waits until the desk is
free, and can say what it waits for. A job that nobody waits for any more is stopped at its next report of progress, so
that a closed tab or a changed choice does not hold up the others.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from queue import Empty, Queue
from typing import Any

Progress = Callable[[int, int], None]
Work = Callable[[Progress], Any]

PATIENCE = 10.0  # seconds without a sign of life from any tab after which a job is given up
# finished jobs of a kind (a key's first part) whose results are kept: models are large, and pictures may be
KEPT = {"lens": 2, "picture": 2}
KEPT_ELSE = 32


def _running() -> bool:
    """Whether this process has not been told to stop: the rest of the work is then not done first."""
    return threading.main_thread().is_alive()


class Cancelled(Exception):
    """Nobody wants the result of this work any more."""


class Job:
    """One piece of work: where it stands, and what came of it."""

    def __init__(self, key: tuple[Hashable, ...], what: str) -> None:
        self.key, self.what = key, what
        self.share = 0.0
        """How much of it is done, 0 to 1."""
        self.running = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._finished = threading.Event()
        self._waiting: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def finished(self) -> bool:
        return self._finished.is_set()

    def wait(self, who: str, seconds: float) -> bool:
        """Wait for the end, at most so long, and be counted as waiting; returns whether it has come."""
        with self._lock:
            self._waiting[who] = time.monotonic()
        return self._finished.wait(seconds)

    def leave(self, who: str) -> None:
        """No longer wait. Without anybody who does, the job stops."""
        with self._lock:
            self._waiting.pop(who, None)

    def wanted(self) -> bool:
        with self._lock:
            last = max(self._waiting.values(), default=0.0)
        return _running() and time.monotonic() - last < PATIENCE

    def report(self, done: int, of: int) -> None:
        """What the work calls now and then."""
        if not self.wanted():
            raise Cancelled
        self.share = done / max(of, 1)

    def run(self, work: Work) -> None:
        self.running = True
        try:
            self.report(0, 1)
            self.value = work(self.report)
        except BaseException as error:  # whatever it is, the tabs that wait say so
            self.error = error
        finally:
            self.running = False
            self._finished.set()


class Desk:
    """Jobs by key, and one worker. Finished jobs are kept for those who ask again; the oldest are forgotten."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[tuple[Hashable, ...], Job] = OrderedDict()
        self._lock = threading.Lock()
        self._queue: Queue[tuple[Job, Work]] = Queue()
        threading.Thread(target=self._serve, name="desk").start()

    def ask(self, key: tuple[Hashable, ...], what: str, work: Work, who: str) -> Job:
        """The job of this key (its first part is its kind): an earlier one if it came to something, else a new one."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None or (job.finished and job.error is not None) or not (job.finished or job.wanted()):
                job = self._jobs[key] = Job(key, what)
                job.wait(who, 0)
                self._queue.put((job, work))
            self._jobs.move_to_end(key)
            self._forget(key[0])
            return job

    def knows(self, key: tuple[Hashable, ...]) -> bool:
        """Whether the job of this key has come to something, or somebody waits for it: asking for it starts nothing."""
        with self._lock:
            job = self._jobs.get(key)
            return job is not None and (job.error is None if job.finished else job.wanted())

    def holder(self) -> Job | None:
        """The job at the desk now."""
        with self._lock:
            return next((job for job in self._jobs.values() if job.running), None)

    def _serve(self) -> None:
        while _running():
            with suppress(Empty):
                job, work = self._queue.get(timeout=1.0)
                job.run(work)

    def _forget(self, kind: Hashable) -> None:
        finished = [key for key, job in self._jobs.items() if key[0] == kind and job.finished]
        for key in finished[: max(0, len(finished) - KEPT.get(str(kind), KEPT_ELSE))]:
            del self._jobs[key]
