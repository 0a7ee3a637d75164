"""The state of one training run, and the file that it can be continued from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.errors import InterpError
from interp.files import tensors as tensor_file
from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.tasks.regression import Tasks
from interp.results.described import described

OnStep = Callable[[int, AttentionRegressor], Mapping[str, float] | None]
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what torch's Adam remembers of each weight
OF_THE_SAMPLE = ("seed", "x_variance")  # what differs between batches of one law


@dataclass
class TrainingRun:
    """Everything that the next step depends on, and what has been recorded so far."""

    model: AttentionRegressor
    optimiser: torch.optim.Adam
    generator: torch.Generator
    settings: dict[str, Any]
    """Plain values; a checkpoint with other settings is refused."""
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    measured: list[dict[str, float]] = field(default_factory=list)
    """Numbers from outside, each with its `step`."""
    law: dict[str, Any] | None = None
    """What the tasks say of themselves, without their seed."""

    @property
    def step(self) -> int:
        return len(self.losses)

    def follow_law(self, tasks: Tasks) -> None:
        """Remember the law of the tasks, or raise InterpError where it is not the one of the steps before."""
        law = {key: value for key, value in tasks.about.items() if key not in OF_THE_SAMPLE}
        if self.law is not None and law != self.law:
            raise InterpError(f"the checkpoint was trained on tasks of {self.law}, and these are of {law}.")
        self.law = law

    def note(self, on_step: OnStep | None) -> None:
        """Keep the numbers that `on_step` finds in the model as it is now."""
        if on_step is not None and (numbers := on_step(self.step, self.model)) is not None:
            self.measured.append({"step": float(self.step), **{name: float(x) for name, x in numbers.items()}})

    def result(self, seconds: float) -> xr.Dataset:
        """Curves over steps. `seconds` is how long the last call took, for the attributes."""
        half_mse = "half the mean squared error of the batch before the step's update"
        curves = described(
            {
                "loss": ("step", np.array(self.losses), "units of y²", half_mse),
                "grad_norm": (
                    "step",
                    np.array(self.grad_norms),
                    "units of y² / weight",
                    "norm of the gradient, unclipped",
                ),
            },
            coords={"step": np.arange(1, self.step + 1)},
            attrs={**self.settings, "tasks": self.law or {}, "seconds_of_last_call": seconds},
        )
        if not self.measured:
            return curves
        curves = curves.assign_coords(measured_step=[int(numbers["step"]) for numbers in self.measured])
        for name in {name: None for numbers in self.measured for name in numbers if name != "step"}:
            curves[name] = ("measured_step", [numbers.get(name, np.nan) for numbers in self.measured])
        return curves

    def write(self, path: Path) -> None:
        """Keep the run in one safetensors file; it appears complete or not at all."""
        tensors = {f"model.{name}": weight for name, weight in self.model.weights().items()}
        for name, weight in self._trained():
            tensors |= {f"{key}.{name}": self.optimiser.state[weight][key] for key in MOMENTS}
        tensors["generator"] = self.generator.get_state()
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["grad_norms"] = torch.tensor(self.grad_norms, dtype=torch.float64)
        about = {"settings": self.settings, "measured": self.measured, "law": self.law}
        tensor_file.write(path, tensors, "run", about)

    def read(self, path: Path) -> None:
        """Become the run that `write` kept. Raises InterpError for a file of another run, or none at all."""
        try:
            tensors, about = tensor_file.read(path, "run")
            mine, theirs = json.loads(json.dumps(self.settings)), dict(about["settings"])
        except InterpError:
            raise
        except tensor_file.UNREADABLE as error:
            raise InterpError(
                f"{path} is no checkpoint of a training run ({error}); remove it to start anew."
            ) from None
        if different := [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]:
            key = different[0]
            raise InterpError(
                f"the run in {path} has {key}={theirs.get(key)}, and {key}={mine.get(key)} was asked for; "
                "ask for the same settings, or remove the file to start anew."
            )
        self.model.load_weights({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        for name, weight in self._trained():
            self.optimiser.state[weight] = {key: tensors[f"{key}.{name}"].to(weight.device) for key in MOMENTS}
        self.generator.set_state(tensors["generator"])
        self.losses, self.grad_norms = tensors["losses"].tolist(), tensors["grad_norms"].tolist()
        self.measured, self.law = about["measured"], about["law"]

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
