"""A study that trains a two-weight model in milliseconds: what every study does, without its cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import plotly.graph_objects as go
import torch
import xarray as xr

from interp.figures._theme import finish
from interp.icl.studies import Choice, Picture, Progress, Study, StudyParts, Verdict, between, near

EVIL = "<script>alert(1)</script>`|[x](javascript:alert(2))"


@dataclass(frozen=True)
class ToyStudy(Study):
    """Learns that w is 3 by gradient descent, from `seeds` starts."""

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = f"A weight becomes 3 {EVIL}"
    paper: ClassVar[str] = "Nobody, Nowhere 1900"
    description: ClassVar[str] = "One weight is trained."
    summary: ClassVar[str] = "one weight"
    seeds: int = 2
    steps: int = 50
    die_at: int = field(default=-1, compare=False)

    def settings(self):
        return {"quick": self.quick, "seeds": self.seeds, "steps": self.steps}

    def measure(self, parts: StudyParts, progress: Progress) -> xr.Dataset:
        found = []
        for seed in range(self.seeds):
            progress(seed / self.seeds, f"seed {seed}")
            model = torch.nn.Linear(1, 1, bias=False)
            model, curve = parts.trained(f"seed-{seed}", {"steps": self.steps, "seed": seed}, model, self._fit(seed))
            found.append(model.weight.item())
            assert float(curve["loss"][-1]) < 0.1
        return xr.Dataset({"weight": ("seed", found)}, coords={"seed": range(self.seeds)})

    def _fit(self, seed: int):
        def fit(model: torch.nn.Module, checkpoint: Path) -> xr.Dataset:
            checkpoint.write_bytes(b"half way")
            if seed == self.die_at:
                raise KeyboardInterrupt
            torch.nn.init.constant_(model.weight, float(seed))
            sgd = torch.optim.SGD(model.parameters(), lr=0.2)
            losses = []
            for _ in range(self.steps):
                sgd.zero_grad()
                loss = (model.weight - 3).square().sum()
                loss.backward()
                sgd.step()
                losses.append(loss.item())
            return xr.Dataset({"loss": ("step", losses)})

        return fit

    def verdicts(self, ds: xr.Dataset) -> list[Verdict]:
        return [
            near("the weight", f"arithmetic {EVIL}", 3.0, ds["weight"], within=1e-3),
            between("the weight is at least 4", "a wish", ds["weight"], low=4.0),
            near("the weight after a long training", "arithmetic", 3.0, ds["weight"], within=0.1, measured=False),
        ]

    def figures(self, ds: xr.Dataset) -> list[Picture]:
        fig = finish(go.Figure(go.Scatter(x=[0, 1], y=ds["weight"].values)), "weights", 300)
        return [Picture("weights", f"The weights. {EVIL}", fig)]

    def choices(self) -> list[Choice]:
        return [Choice("step size", "0.2", "ours", EVIL)]

    def notes(self, ds: xr.Dataset) -> list[str]:
        return [f"the mean weight is {float(ds['weight'].mean()):.3f}"]
