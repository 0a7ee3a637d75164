"""Decoding in a process of its own, under limits: what a damaged or hostile file does there, it does not do here.

The answer is plain bytes and JSON, never a pickle. A process that waits for the next file is kept for each decoder
(starting one takes 0.2 s, a file then some 10 ms); it is ended when a file took too long or broke the decoder.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import suppress
from typing import Any, NamedTuple

from interp.errors import StorageError
from interp.files.child import TOO_LONG, put, take

SECONDS = 4
"""Of computing, besides one for every 5 MB: texts take a second for 20 MB, numbers some hundredths."""
MEMORY = 256 << 20
"""Bytes, besides four times the file."""
PATIENCE = 10
"""How many times longer it may take by the clock: on a busy machine, or where time cannot be counted."""
START = "import sys; sys.path[:] = sys.argv[2:]; from interp.files.child import main; main(sys.argv[1])"


class Answer(NamedTuple):
    about: dict[str, Any]
    """What the decoder says of the file, as JSON has it."""
    pieces: list[bytearray]


class NoAnswerError(Exception):
    """The process ended, or took too long."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late


def decoded(module: str, content: bytes, name: str) -> Answer:
    """What `module.decode(content)` returns in another process: a dict for JSON, and pieces of bytes.

    name: what errors call the file and what it should be, as in "x.nc is not a result".
    Raises `StorageError` where the decoder refuses it, dies, or takes too much time or memory.
    """
    try:
        answer = answered(module, content, SECONDS)
    except NoAnswerError as error:
        why = "it takes longer to read than any does" if error.late else "it breaks the library that reads it"
        raise StorageError(f"{name}, or is damaged: {why}.") from None
    if (said := refused(answer)) is not None:
        raise StorageError(f"{name}, or is cut short: {said}.")
    return answer


def answered(module: str, content: bytes, seconds: int) -> Answer:
    """What `module.decode(content)` says in another process, within so many seconds of computing.

    Raises `NoAnswerError` where it dies, or takes too much time or memory; one that refuses says so in its answer.
    """
    child = _Child.for_(module)
    try:
        answer = child.ask(content, seconds + len(content) // 5_000_000, MEMORY + 4 * len(content))
    except (EOFError, OSError, ValueError, OverflowError):
        raise NoAnswerError(child.end() == TOO_LONG) from None
    except BaseException:  # Ctrl-C: an answer that nobody takes must not be the next one's
        child.end()
        raise
    _IDLE[child.key].append(child)
    return answer


def refused(answer: Answer) -> str | None:
    """Why a decoder refused what it was given; None where it did not."""
    if "refused" not in answer.about:
        return None
    return "".join(c for c in str(answer.about["refused"])[:200] if c.isprintable()).rstrip(".")


_IDLE: defaultdict[tuple[int, str], list[_Child]] = defaultdict(list)
"""Processes that wait, by the one that started them (a fork must not share them) and by decoder."""


class _Child:
    """A process with one decoder."""

    def __init__(self, module: str) -> None:
        self.key = (os.getpid(), module)
        self.late = False
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", START, module, *sys.path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, "HDF5_PLUGIN_PRELOAD": "::", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise StorageError(
                f"files are decoded in a process of their own, and none could be started: {error.strerror or error}."
            ) from None

    @classmethod
    def for_(cls, module: str) -> _Child:
        with suppress(IndexError):
            return _IDLE[os.getpid(), module].pop()
        return cls(module)

    def ask(self, content: bytes, seconds: int, memory: int) -> Answer:
        """Raises EOFError or OSError where the process ended, ValueError or OverflowError where it does not say."""
        asked, answers = self.process.stdin, self.process.stdout
        assert asked is not None
        assert answers is not None
        clock = threading.Timer(PATIENCE * seconds, self._too_late)
        clock.daemon = True
        clock.start()
        try:
            nonce = secrets.token_hex(8)  # a process that outlives its file does not know the next one's
            put(asked, json.dumps({"seconds": seconds, "memory": memory, "nonce": nonce}).encode())
            put(asked, content)
            asked.flush()
            head = json.loads(take(answers, memory))
            if head["nonce"] != nonce:
                raise ValueError("an answer to another question")
            pieces: list[bytearray] = []
            for _ in range(head["pieces"]):
                pieces.append(take(answers, memory - sum(map(len, pieces))))
            return Answer(dict(head["about"]), pieces)
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError("no answer of ours") from error
        finally:
            clock.cancel()

    def _too_late(self) -> None:
        self.late = True
        self._kill()

    def end(self) -> int:
        """End the process, and all that it started; returns why it had ended already, if it had."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.2)  # it may be about to say
        return self.close()

    def close(self) -> int:
        self._kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        return TOO_LONG if self.late else code

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, 9) if hasattr(os, "killpg") else self.process.kill()


@atexit.register
def _end_idle() -> None:
    for children in _IDLE.values():
        for child in children:
            if child.key[0] == os.getpid():
                child.close()
