"""A run to report, with hostile text wherever text can be."""

from __future__ import annotations

import pytest
import xarray as xr

from interp.probes.base import Probe
from tests.example_results import example_results
from tests.report.reported_sinks import EVIL, ReportedSinks


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
