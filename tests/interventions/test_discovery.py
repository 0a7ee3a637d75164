"""Interventions are found by name whatever was imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from interp.interventions import available

FIRST = (
    "interp.interventions.policies.think",
    "interp.interventions.policies.recall",
    "interp.interventions.policies._channels",
    "interp.lens.lens",
)


@pytest.mark.parametrize("first", FIRST)
def test_every_order_of_imports_finds_all(first: str) -> None:
    code = f"import {first}; from interp.interventions import available; print(*available())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == list(available())
