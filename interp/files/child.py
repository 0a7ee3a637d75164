"""The process in which files are decoded that nobody vouches for: started, fed and ended by `interp.files.apart`.

It imports one module, decodes the module's `example()` for practice, and then makes a fork for each file, which calls
`decode(content)`, sends what that returns as plain bytes, and ends: what a file does to it, it does to nothing else. A
fork may use little time and memory, and open no file. Where the system has no fork the process does this itself, once.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
import sys
from contextlib import suppress
from typing import IO, Any

TOO_LONG, BROKE = 3, 4
"""Exit codes: the time was over; the decoder died of the file."""
LENGTH = struct.Struct("<Q")


def put(pipe: IO[bytes], content: Any) -> None:
    """One piece of a message: its length and its bytes."""
    pipe.write(LENGTH.pack(memoryview(content).nbytes))
    pipe.write(content)


def take(pipe: IO[bytes], most: int) -> bytearray:
    """What `put` sent. Raises EOFError where it ends early, OverflowError where it is longer than `most` bytes."""
    (length,) = LENGTH.unpack(_exactly(pipe, LENGTH.size))
    if length > most:
        raise OverflowError(f"{length:,} bytes")
    return _exactly(pipe, length)


def _exactly(pipe: IO[bytes], length: int) -> bytearray:
    content = bytearray(length)
    view = memoryview(content)
    while view:
        got = pipe.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        view = view[got:]
    return content


def main(module: str) -> None:
    decoder = importlib.import_module(module)
    decode = decoder.decode
    decode(decoder.example())
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no part of an answer
    while True:
        try:
            limits, content = json.loads(take(asked, 1 << 16)), take(asked, 1 << 62)
            nonce = limits.pop("nonce")
        except EOFError:  # who asked has ended
            return
        if not hasattr(os, "fork"):
            _answer(decode, content, answers, nonce)
            return
        fork = os.fork()
        if fork == 0:
            os.close(0)
            _limit(**limits)
            _answer(decode, content, answers, nonce)
            os._exit(0)
        del content
        if code := os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]):
            import signal

            os._exit(TOO_LONG if code == -signal.SIGXCPU else BROKE)  # at once: who asked does not wait for long


def _answer(decode: Any, content: bytearray, answers: IO[bytes], nonce: str) -> None:
    try:
        about, pieces = decode(content)
    except MemoryError:
        about, pieces = {"refused": "it expands to more than it may"}, ()
    except Exception as error:  # libraries break in many ways on a damaged file
        about, pieces = {"refused": " ".join(f"{error}".split()) or type(error).__name__}, ()
    put(answers, json.dumps({"nonce": nonce, "about": about, "pieces": len(pieces)}).encode())
    for piece in pieces:
        put(answers, piece)
    answers.flush()


def _limit(seconds: int, memory: int) -> None:
    """At most so many seconds of computing and bytes above what is in use; no more files, no core dump."""
    try:
        import resource
    except ImportError:
        return
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_AS": _in_use() + memory, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0}
    for name, most in {**limits, "RLIMIT_NOFILE": 0}.items():
        with suppress(ValueError, OSError):  # macOS knows not all of them
            resource.setrlimit(getattr(resource, name), (most, most + (name == "RLIMIT_CPU")))  # at the first a signal


def _in_use() -> int:
    """Bytes of address space that this process has; more than any has where the system does not tell."""
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 1 << 40
