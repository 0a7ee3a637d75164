"""The whole training, stage after stage, each from its checkpoint where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.files.writing import write
from interp.subjects.emoji import stage
from interp.subjects.emoji.answering import Answering, AnsweringStage, around
from interp.subjects.emoji.evaluation import Table, evaluate
from interp.subjects.emoji.language import language_model
from interp.subjects.emoji.model import WEIGHTS, part, read_weights, write_weights
from interp.subjects.emoji.projector import Aims, ProjectorStage
from interp.subjects.emoji.stage import Pace
from interp.subjects.emoji.tower import TowerStage, accuracy, held_out_scenes

TOWER = Pace(steps=1700, rate=1e-3, batch=32, warm_up=150)
PROJECTOR = Pace(steps=2000, rate=2e-3, batch=384, warm_up=100)
ANSWERING = Pace(steps=3000, rate=5e-4, batch=2, warm_up=20, decay=0.0)
FURTHER = Pace(steps=1300, rate=5e-4, batch=2, warm_up=50, decay=0.0)
"""Of the stage that goes on from the weights that ship."""


def train(folder: Path, questions: int) -> Table:
    """Train all of emoji-vlm in `folder`, write its weights there and return what `evaluate` finds.

    Written are `emoji-vlm.safetensors`, the parts that ship, and `training.json`: settings, losses, and the
    evaluation on at least `questions` questions of each condition.
    """
    towering = TowerStage(TOWER)
    curves = {"tower": stage.run(towering, folder)}
    model, tokenizer = language_model(torch.bfloat16)
    projecting = ProjectorStage(PROJECTOR, towering.classifier, Aims(model, tokenizer))
    curves["projector"] = stage.run(projecting, folder)
    model.set_attn_implementation("eager")  # of short sequences it is the quickest on a processor, backwards too
    answering = Answering(towering.classifier, projecting.projector, model, tokenizer, adapted=True)
    learning = AnsweringStage(ANSWERING, answering)
    curves["answering"] = stage.run(learning, folder)
    stages = (towering, projecting, learning)
    patches = accuracy(towering.classifier, held_out_scenes(200))
    about = {"settings": [one.settings() for one in stages], "patches": patches}
    return _kept(folder, answering, about, curves, questions)


def train_further(folder: Path, questions: int) -> Table:
    """Go on with the last stage from the weights that ship, on scenes that it has not had; else as `train`."""
    weights, about = read_weights(WEIGHTS)
    model, tokenizer = language_model(torch.bfloat16)
    model.set_attn_implementation("eager")
    answering = around(weights, model, tokenizer, adapted=True)
    learning = AnsweringStage(FURTHER, answering, seed=len(about["settings"]))
    for name, adapter in answering.adapters.items():
        adapter.load_state_dict(part(weights, f"adapter.{name}"), strict=False)
    curve = stage.run(learning, folder)
    about = {**about, "settings": [*about["settings"], learning.settings()], "steps": [*about["steps"], len(curve)]}
    return _kept(folder, answering, about, {"answering": curve}, questions)


def _kept(folder: Path, answering: Answering, about: dict[str, Any], curves: dict[str, Any], questions: int) -> Table:
    """Write what was trained and how, and what `evaluate` finds."""
    write_weights(folder / "emoji-vlm.safetensors", trained_parts(answering), about)
    table = evaluate(answering, questions)
    write(folder / "training.json", json.dumps({**about, "evaluation": table, "losses": curves}))
    return table


def trained_parts(answering: Answering) -> dict[str, Tensor]:
    """The tensors that ship, named as `interp.subjects.emoji.model.assemble` wants them."""
    parts: dict[str, Any] = {
        "tower": answering.classifier.tower.state_dict(),
        "projector": answering.projector.state_dict(),
        "adapter": {
            f"{name}.{side}": getattr(adapter, side).detach()
            for name, adapter in answering.adapters.items()
            for side in ("down", "up")
        },
    }
    return {
        f"{part}.{name}": tensor
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
