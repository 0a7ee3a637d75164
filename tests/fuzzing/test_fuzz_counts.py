"""How many inputs the fuzzer tries, and that no entry point is left out of it."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.fuzzing.drawing import again
from tests.fuzzing.trying import TIMES

FAST, SLOW = 10_000, 100_000


def counted() -> dict[str, int]:
    """Inputs of the fast form, by file and test."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.fuzzing.{path.stem}")
        tests = {name: test for name, test in vars(module).items() if hasattr(test, "inputs")}
        found |= {f"{path.stem}.{name}": test.inputs for name, test in tests.items()}
    return found


def test_so_many_inputs_are_tried() -> None:
    total = sum(counted().values())
    assert total >= FAST
    assert total * TIMES >= SLOW
    assert min(counted().values()) > 0


def test_an_input_can_be_made_again() -> None:
    assert [again("calls", 7).random() for _ in range(3)] == [again("calls", 7).random()] * 3
    assert again("calls", 7).random() != again("calls", 8).random()
