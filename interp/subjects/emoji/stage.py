"""One stage of the training: steps of AdamW that can be continued after whatever ended them."""

from __future__ import annotations

import json
import logging
import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from interp.errors import InterpError
from interp.files import tensors as tensor_file

logger = logging.getLogger(__name__)

KEPT_EVERY = 120
"""Seconds between two checkpoints."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of each weight


@dataclass(frozen=True)
class Pace:
    """How long and how fast a stage learns: the rate rises over the first steps and falls to nothing as a cosine."""

    steps: int
    rate: float
    batch: int
    warm_up: int = 100
    decay: float = 0.02
    largest_gradient: float = 1.0

    def rate_at(self, step: int) -> float:
        risen = min((step + 1) / self.warm_up, 1.0)
        return self.rate * risen * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Stage(ABC):
    """What is trained and on what; everything that a step sees follows from its number."""

    name: ClassVar[str]
    pace: Pace

    @abstractmethod
    def trained(self) -> nn.Module:
        """Whose weights that want gradients are trained, and kept."""

    @abstractmethod
    def losses(self, step: int) -> dict[str, Tensor]:
        """What is added up and made smaller by a step, and under which names it is recorded."""

    def share_of_rate(self, weight: str) -> float:
        """By what the rate is multiplied for a weight, by its name."""
        return 1.0

    def settings(self) -> dict[str, Any]:
        """Plain values; a checkpoint of others is refused."""
        return {"stage": self.name, **vars(self.pace)}


def run(stage: Stage, folder: Path) -> list[dict[str, float]]:
    """Train a stage to its end, from its checkpoint in `folder` where there is one; returns the losses of its steps.

    Raises InterpError for a checkpoint of other settings.
    """
    weights = {name: weight for name, weight in stage.trained().named_parameters() if weight.requires_grad}
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [weight],
                "weight_decay": stage.pace.decay if weight.ndim >= 2 else 0.0,
                "share": stage.share_of_rate(name),
            }
            for name, weight in weights.items()
        ],
        betas=(0.9, 0.98),
    )
    path = folder / f"{stage.name}.safetensors"
    curve = _resume(stage, path, weights, optimiser) if path.exists() else []
    kept = began = time.monotonic()
    first = len(curve)
    for step in range(first, stage.pace.steps):
        for group in optimiser.param_groups:
            group["lr"] = stage.pace.rate_at(step) * group["share"]
        losses = stage.losses(step)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(weights.values(), stage.pace.largest_gradient)
        optimiser.step()
        optimiser.zero_grad()
        curve.append({name: loss.item() for name, loss in losses.items()})
        if (step + 1) % 20 == 0:
            _say(stage, curve[-20:], step + 1, (time.monotonic() - began) / (step + 1 - first))
        if time.monotonic() - kept > KEPT_EVERY:
            _keep(stage, path, weights, optimiser, curve)
            kept = time.monotonic()
    if len(curve) > first:
        _keep(stage, path, weights, optimiser, curve)
    return curve


def _say(stage: Stage, last: list[dict[str, float]], step: int, seconds: float) -> None:
    means = "  ".join(f"{name} {sum(losses[name] for losses in last) / len(last):.4f}" for name in last[0])
    logger.info("%s %d/%d  %s  (%.2f s a step)", stage.name, step, stage.pace.steps, means, seconds)


def _keep(
    stage: Stage, path: Path, weights: dict[str, nn.Parameter], optimiser: torch.optim.AdamW, curve: list[Any]
) -> None:
    tensors = {f"weight.{name}": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        tensors |= {f"{key}.{name}": optimiser.state[weight][key] for key in MOMENTS}
    tensor_file.write(path, tensors, "stage", {"settings": stage.settings(), "curve": curve})


def _resume(
    stage: Stage, path: Path, weights: dict[str, nn.Parameter], optimiser: torch.optim.AdamW
) -> list[dict[str, float]]:
    tensors, about = read(path)
    mine = json.loads(json.dumps(stage.settings()))
    if about["settings"] != mine:
        raise InterpError(
            f"{path} is of a training with other settings: {about['settings']}, not {mine}; name another folder."
        )
    for name, weight in weights.items():
        weight.data.copy_(tensors[f"weight.{name}"])
        optimiser.state[weight] = {key: tensors[f"{key}.{name}"] for key in MOMENTS}
    curve: list[dict[str, float]] = about["curve"]
    return curve


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, and its settings and losses. Raises InterpError for a file that is none."""
    try:
        tensors, about = tensor_file.read(path, "stage")
        return tensors, dict(about)
    except tensor_file.UNREADABLE as error:
        raise InterpError(f"{path} is no checkpoint of emoji-vlm ({error}); name another folder.") from None


def weights_of(path: Path) -> dict[str, Tensor]:
    """The trained weights in a checkpoint, by name."""
    tensors, _ = read(path)
    return {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name.startswith("weight.")}
