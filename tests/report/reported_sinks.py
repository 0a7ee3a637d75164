"""A probe that is never run: its findings quote hostile text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import xarray as xr

from interp.probes.base import Context, Fold, Probe
from interp.probes.text_sinks import TextSinks
from interp.results.columns import Column

EVIL = "<script>alert(1)</script>`|\n\x00[x](javascript:alert(2))"


@dataclass(frozen=True)
class ReportedSinks(Probe):
    """Stands for the probe whose result it reports."""

    name: ClassVar[str] = "text_sinks"
    epsilon: float = 0.3

    def begin(self, context: Context) -> Fold:
        raise AssertionError("a report runs nothing")

    def findings(self, result: xr.Dataset) -> list[str]:
        return [f"{result.sizes['layer']} layers, threshold {self.epsilon}: {EVIL}"]

    @classmethod
    def columns(cls, result: xr.Dataset) -> list[Column]:
        return TextSinks.columns(result)
