"""Has emoji-vlm visual sinks, and what would make some? φ and attention of image tokens, as asked and changed in turn.

A token is a sink by φ where that reaches the threshold at which it agrees best with attention in the demo model
(`interp.sink_threshold`), and by attention where a layer's rows give it more than 10 times what they give the mean
token. Changed are where the picture stands, how many there are, what is on it, whether the language model has learnt to
answer, for how long it has, and whether the tower has a class token that could keep what a sink keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import interp
from benchmarks.table import publish
from benchmarks.visual_sinks import CHANNELS
from interp.runs.sink_threshold import shares_and_received
from interp.subjects.emoji import stage
from interp.subjects.emoji.evaluation import EMPTY, FIRST
from interp.subjects.emoji.model import WEIGHTS, assemble, read_weights
from interp.subjects.emoji.prompts import AFTER, BEFORE
from interp.subjects.emoji.questions import ask
from interp.subjects.emoji.scenes import make_scene

SCENES = 24
TIMES_MEAN = 10.0
PLACE = "<image>"
Given = tuple[str, list[Any]]
"""A text and its pictures."""


def main(checkpoints: str | None = None) -> None:
    """checkpoints: a folder of `*.safetensors` from the training's last stage, each a row more."""
    torch.set_num_threads(1)
    demo = interp.load("demo")
    tau = float(interp.sink_threshold(demo, CHANNELS).attrs["tau_rel"])
    del demo
    shipped, _ = read_weights(WEIGHTS)
    lens = interp.load(*assemble(shipped, torch.float32))
    ways: dict[str, Callable[[int], Given]] = {
        "as asked": _asked,
        "picture before all text": lambda n: (f"{PLACE}{_after(n)}", [_scene(n)]),
        "4 pictures": lambda n: (BEFORE + 4 * PLACE + _after(n), [_scene(n + 100 * one) for one in range(4)]),
        "8 pictures": lambda n: (BEFORE + 8 * PLACE + _after(n), [_scene(n + 100 * one) for one in range(8)]),
        "nothing on the picture": lambda n: (BEFORE + PLACE + _after(n), [EMPTY.picture()]),
    }
    rows = [_row(name, lens, way, tau) for name, way in ways.items()]
    scores = [name for name in lens.hook_dict if name.startswith("vision.") and name.endswith("hook_attn_scores")]
    with lens.hooks(fwd_hooks=[(name, _class_token_hidden) for name in scores]):
        rows.append(_row("class token of the tower hidden", lens, _asked, tau))
    variants = {"before it learnt to answer": _scaled(shipped, 0.0)}
    for path in sorted(Path(checkpoints).glob("*.safetensors")) if checkpoints else ():
        variants[f"training, {path.stem}"] = _answering(shipped, path)
    for name, weights in variants.items():
        rows.append(_row(name, interp.load(*assemble(weights, torch.float32)), _asked, tau))
    publish("visual_sink_causes", rows)


def _scene(number: int) -> Any:
    return make_scene(FIRST + number, held_out=True).picture()


def _after(number: int) -> str:
    scene = make_scene(FIRST + number, held_out=True)
    return AFTER.format(question=ask(scene, number, 1, held_out=True)[0].text)


def _asked(number: int) -> Given:
    return BEFORE + PLACE + _after(number), [_scene(number)]


def _class_token_hidden(scores: torch.Tensor, hook: Any) -> torch.Tensor:
    """No patch of the tower attends to it, so that none can leave there what a register would keep."""
    hidden = scores.clone()
    hidden[..., 0] = torch.finfo(scores.dtype).min
    return hidden


def _scaled(weights: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Its adapters with so much of their effect."""
    return {name: tensor * share if name.endswith(".up") else tensor for name, tensor in weights.items()}


def _answering(shipped: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The shipped tower with projector and adapters of a checkpoint."""
    learnt = stage.weights_of(path)
    renamed = {
        name.replace("adapters.", "adapter.") if name.startswith("adapters.") else name: tensor
        for name, tensor in learnt.items()
    }
    return {**shipped, **{name: tensor for name, tensor in renamed.items() if name in shipped}}


def _row(name: str, lens: Any, given: Callable[[int], Given], tau: float) -> dict[str, Any]:
    seen = [_seen(lens, *given(number), tau) for number in range(SCENES)]
    return {"changed": name, "scenes": SCENES, "tau_rel": tau, **{
        key: float(np.mean([one[key] for one in seen])) for key in seen[0]
    }}  # fmt: skip


def _seen(lens: Any, text: str, pictures: list[Any], tau: float) -> dict[str, float]:
    probes = [interp.VisualSinks(channels=CHANNELS, tau_rel=tau), interp.VisionRegisters()]
    found = interp.probe(lens, text, probes, images=pictures)
    image = (found["visual_sinks"]["modality"] == "image").values
    flat = shares_and_received(lens, text, {"images": pictures}, [CHANNELS])
    share, times = (values.numpy().reshape(-1, len(image)) for values in flat)
    piled = times > TIMES_MEAN
    return {
        "largest φ of an image token": share[:, image].max(),
        "median φ of image tokens": np.median(share[2:-2, image]),
        "largest φ of a text token": share[:, ~image].max(),
        "some image token is a sink by φ": float((share[:, image] >= tau).any()),
        "image tokens that are, per layer": float((share[:, image] >= tau).sum(1).mean()),
        "some image token is a sink by attention": float(piled[:, image].any()),
        "image tokens that are by attention, per layer": float(piled[:, image].sum(1).mean()),
        "text tokens that are by attention, per layer": float(piled[:, ~image].sum(1).mean()),
        "high-norm patches of the tower": float(found["vision_registers"]["registers"].values[-1]),
    }


if __name__ == "__main__":
    main()
