"""The examples in docstrings, on a tiny random model: what they show is what comes out."""

from __future__ import annotations

import doctest
import importlib
import inspect
from functools import cache
from typing import Any

import interp_kernels
import pytest
import torch

import interp
from tests.example_results import example_results
from tests.example_sides import example_sides
from tests.examples import run
from tests.explaining.example_answers import example_answers
from tests.icl.example_measurements import example_measurements
from tests.models import shared, tokenizer
from tests.test_house import MODULES

SHOWN = [module for module, path in MODULES.items() if ">>> " in path.read_text(encoding="utf-8")]
SMALL = {"layers": 3, "heads": 4, "kv_heads": 2, "width": 8, "tokens": 40}


@cache
def lens() -> interp.Lens:
    return interp.load(shared("llama"), tokenizer=tokenizer())


@cache
def results() -> dict[str, Any]:
    seen = {name: run(name) for name in interp.probes.available("images")}
    by_hand = example_answers(**SMALL) | example_measurements(**SMALL) | example_sides(**SMALL)
    return example_results(**SMALL) | by_hand | seen


def names() -> dict[str, Any]:
    """What examples may use without saying where it comes from; the docs say so too (`docs/api_pages.py`)."""
    numbers = torch.Generator().manual_seed(0)
    prompt = " ".join(f"w{int(i)}" for i in torch.randint(4, 128, (39,), generator=numbers))  # 40 tokens with <bos>
    q, k, v = (torch.randn(1, heads, 6, 8, generator=numbers) for heads in (4, 2, 2))
    shared_names = {"interp": interp, "interp_kernels": interp_kernels, "torch": torch, "lens": lens()}
    return shared_names | {"prompt": prompt, "results": results(), "q": q, "k": k, "v": v}


def called() -> dict[str, Any]:
    """Functions and classes that people call, by the name that they call them by."""
    found = {f"{package.__name__}.{name}": package for package in (interp, interp.icl) for name in package.__all__}
    things = {full: getattr(package, full.rpartition(".")[2]) for full, package in found.items()}
    methods = ("apply", "score", "generate", "run_with_cache", "forward")
    things |= {f"interp.Lens.{name}": getattr(interp.Lens, name) for name in methods}
    things |= {f"the study {name}": cls for name, cls in interp.icl.studies.available().items()}
    things |= {f"interp.storage.{name}": getattr(interp.storage, name) for name in ("save", "load")}
    return {name: thing for name, thing in things.items() if inspect.isroutine(thing) or inspect.isclass(thing)}


@pytest.mark.parametrize("name", called())
def test_what_people_call_has_an_example(name: str) -> None:
    thing = called()[name]
    assert doctest.DocTestParser().get_examples(thing.__doc__ or ""), f"give {name} an example: `>>> ...`"
    assert thing.__module__ in SHOWN, f"the example of {name} is not run"


@pytest.mark.parametrize("module", SHOWN)
def test_examples_show_what_comes_out(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    imported = importlib.import_module(module)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=options)
    said: list[str] = []
    for example in doctest.DocTestFinder(exclude_empty=True).find(imported, module):
        example.globs = names() | example.globs
        runner.run(example, out=said.append)
    assert runner.tries, f"no example of {module} was found"
    assert not runner.failures, "".join(said)
