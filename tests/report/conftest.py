"""A run to report, with hostile text wherever text can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import xarray as xr

from interp.probes.base import Context, Fold, Probe
from tests.example_results import example_results

EVIL = "<script>alert(1)</script>`|\n\x00[x](javascript:alert(2))"


@dataclass(frozen=True)
class ReportedSinks(Probe):
    """A probe that is never run: its findings quote the text."""

    name: ClassVar[str] = "text_sinks"
    epsilon: float = 0.3

    def begin(self, context: Context) -> Fold:
        raise AssertionError("a report runs nothing")

    def findings(self, result: xr.Dataset) -> list[str]:
        return [f"{result.sizes['layer']} layers, threshold {self.epsilon}: {EVIL}"]


@pytest.fixture
def results() -> dict[str, xr.Dataset]:
    return example_results(layers=4, heads=4, kv_heads=2, width=16, tokens=300)


@pytest.fixture
def probes() -> list[Probe]:
    return [ReportedSinks(epsilon=0.8)]


@pytest.fixture
def run() -> dict:
    return {
        "model": f"org/model {EVIL}",
        "text": f"essay {EVIL}",
        "n_tokens": 300,
        "command": "interp report 'a|b' --text x.txt",
        "seconds": {"load": 1.25, "probe": 2.5},
        "cpu": "Some CPU @ 3 GHz",
        "torch": "2.13.0",
        "threads": 2,
    }
