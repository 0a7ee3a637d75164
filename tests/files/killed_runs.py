"""Runs commands in forks that are killed at random moments, and looks at what they leave. A process of its own.

python -m tests.files.killed_runs COMMAND KILLS FOLDER: prints JSON, how many of the killed runs left old outputs, how
many new ones, and what was wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import torch

import interp
from interp import cli
from interp.files import places
from interp.files.writing import Outputs
from interp.icl.studies import report
from interp.results import storage
from interp.subjects.weights import load_gguf
from tests.icl.studies.toy_study import ToyStudy
from tests.models import shared, tokenizer
from tests.subjects.tiny_gguf import write_tiny_gguf

PROBES = "channel_imbalance,text_sinks,logit_lens"


class CommandLine:
    """`interp report` or `interp probe` of another text each time."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home, self.out = name, home, home / "out"
        shared("llama").save_pretrained(home / "model")
        tokenizer().save_pretrained(home / "model")

    def text(self, run: int) -> Path:
        path = self.home / f"text-{run}-.txt"
        path.write_text(" ".join(f"w{(run + i) % 100}" for i in range(40)))
        return path

    def run(self, run: int) -> None:
        out = self.out / "report.html" if self.name == "report" else self.out
        sys.argv = [
            "interp", self.name, str(self.home / "model"), "--text", str(self.text(run)), "--probes", PROBES,
            "--out", str(out),
        ]  # fmt: skip
        cli.main()

    def found(self) -> set[str]:
        """Of which texts the outputs are."""
        texts = {str(storage.load(path).attrs["text"]) for path in self.out.glob("*.nc")}
        for page in (*self.out.glob("*.md"), *self.out.glob("*.html")):
            said = page.read_text(encoding="utf-8").replace("\\", "")
            texts |= {str(path) for path in self.home.glob("text-*.txt") if path.name in said}
        return texts


class Studied:
    """A study under another title each time."""

    def __init__(self, home: Path) -> None:
        self.out = home / "out"

    def run(self, run: int) -> None:
        ToyStudy.title = f"title-{run}-"  # type: ignore[misc]
        study = ToyStudy()
        with Outputs() as outputs:
            report.write(study, study.run(self.out, outputs=outputs), self.out, outputs=outputs)

    def found(self) -> set[str]:
        titles = {str(storage.load(path).attrs["title"]) for path in self.out.glob("result.nc")}
        for page in self.out.glob("report.*"):
            said = page.read_text(encoding="utf-8")
            titles |= {f"title-{run}-" for run in range(1000) if f"title-{run}-" in said}
        return titles


class Unpacked:
    """The weights of a GGUF file, unpacked into an empty cache each time."""

    def __init__(self, home: Path) -> None:
        self.source, self.home = write_tiny_gguf(home / "m.gguf"), home
        os.environ["INTERP_CACHE"] = str(home / "reference")
        self.weights = load_gguf(self.source)[0].state_dict()

    def run(self, run: int) -> None:
        os.environ["INTERP_CACHE"] = str(self.home / f"cache-{run // 2}")
        load_gguf(self.source)

    def found(self) -> set[str]:
        """Whether what the cache gives now, in a process that lives, are the weights."""
        wrong = False
        for cache in self.home.glob("cache-*"):
            os.environ["INTERP_CACHE"] = str(cache)
            again = load_gguf(self.source)[0].state_dict()
            wrong |= any(not torch.equal(again[name], weight) for name, weight in self.weights.items())
        return {"wrong", "weights"} if wrong else {"weights"}


def forked(work: Callable[[], None], seconds: float | None) -> float:
    """Do the work in a fork, which is killed after some seconds; None: not at all. Returns how long it took."""
    began = time.monotonic()
    if (pid := os.fork()) == 0:
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(silent, stream)
        with contextlib.suppress(SystemExit):
            work()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert seconds is not None or status == 0, f"a run that nobody killed ended with {status}"
    return time.monotonic() - began


def main(command: str, kills: int, folder: Path) -> dict[str, object]:
    made = {"icl": Studied, "weights": Unpacked}.get(command)
    subject = made(folder) if made else CommandLine(command, folder)
    _ = interp.Lens  # what is imported here is not imported in every fork
    forked(partial(subject.run, 0), None)
    took = min(forked(partial(subject.run, run), None) for run in (1, 2))
    before, draw, told = subject.found(), random.Random(command), {"old": 0, "new": 0, "wrong": []}
    for run in range(3, 3 + kills):
        last = draw.random() < 0.6  # most of them while files are written
        forked(partial(subject.run, run), took * (draw.uniform(0.8, 1.1) if last else draw.random()))
        out = getattr(subject, "out", folder)
        places.settle(out)
        found = subject.found()
        left = [path.name for path in out.iterdir() if path.name.startswith(".interp-")]
        if len(found) != 1 or left:
            told["wrong"].append([run, sorted(found), left])
        told["old" if found == before else "new"] += 1
        before = found
    return told


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
