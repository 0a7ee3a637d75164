"""Do visual sinks matter to emoji-vlm, and does VAR help it? A study of held-out questions, asked under every edit.

Questions are in wordings that training never had, about scenes with pairs of kinds that it never had; a scene is a
cluster. An answer is right where greedy decoding would give it to the letter; its loss is the mean of its tokens', in
nats. Edits act on the text behind the image, the answer included. Which image tokens an edit masks is decided in each
layer by itself, from the tokens before the question, so all questions about a scene have the same.

Baselines: as many random image tokens, drawn anew in each layer, and all of the image. Whether the study could see a
difference at all is said by tokens that show things against as many that show background.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rich.progress
import torch

import interp
from benchmarks.table import publish
from interp.files.writing import write
from interp.studies import statistics
from interp.subjects.emoji.evaluation import FIRST
from interp.subjects.emoji.model import WEIGHTS, emoji_vlm
from interp.subjects.emoji.prompts import AFTER, ANSWER, BEFORE
from interp.subjects.emoji.questions import Question, ask
from interp.subjects.emoji.scenes import Scene, make_scene
from interp.subjects.emoji.tower import BACKGROUND, patch_labels
from interp.vision.sinks import sink_values

Tensor = torch.Tensor
SCENES, EACH = 170, 6
CHANNELS = 507
"""`interp.sink_channels` of the demo model."""
BETWEEN = 0.6
"""A threshold that some image tokens reach and others do not, where the two above find all of them or none."""
SOME, MANY = 5, 15
"""Of 49 image tokens: a tenth, and nearly a third."""
CONTRASTS = {
    f"{count} random masked": [f"{count} with the highest φ masked", f"{count} that receive the most masked"]
    for count in (SOME, MANY)
} | {f"{SOME} that show background masked": [f"{SOME} that show things masked"]}
PARTS = Path("build") / "visual_sinks"
"""Answers by scene, until all are there."""


@dataclass
class Reading:
    """What is known of a scene's image tokens before anything is masked, [layer, image token]."""

    first: int
    """Where they begin in the text."""
    phi: np.ndarray
    received: np.ndarray
    """Attention from the questions and answers, mean over rows, heads and questions."""
    shows: np.ndarray
    """Whether a patch shows a thing [image token]."""
    seed: int


Edit = Callable[[Reading], Any]


def main() -> None:
    """Asks in as many processes as there are processors; started again, it goes on after the scenes that are done."""
    parts = PARTS / hashlib.sha256(WEIGHTS.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    parts.mkdir(parents=True, exist_ok=True)
    left = [number for number in range(SCENES) if not (parts / f"{number}.csv").exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, _load) as processes:
        for number in rich.progress.track(processes.map(partial(_keep, parts), left), "scenes", total=len(left)):
            print(f"scene {number}", flush=True)
    answers = pd.concat([pd.read_csv(parts / f"{number}.csv") for number in range(SCENES)])
    publish("visual_sinks", compared(answers))


def compared(answers: pd.DataFrame) -> list[dict[str, Any]]:
    """Every edit against none, and what is masked against as many random or background tokens: by what is asked."""
    rows: list[pd.DataFrame] = []
    kinds = {"all": answers, **{str(about): some for about, some in answers.groupby("about")}}
    for (asked, some), (measure, better) in product(kinds.items(), {"right": "higher", "loss": "lower"}.items()):
        wide = some.pivot(index=["scene", "question"], columns="edit", values=measure).astype(float).reset_index()
        wide.insert(0, "item", wide["scene"].astype(str) + " " + wide["question"].astype(str))
        wide = wide.drop(columns="question")
        for baseline, methods in {"none": None, **CONTRASTS}.items():
            table = statistics.paired(
                wide, baseline, methods, cluster="scene", better=better, family=f"{asked}, {measure}, {baseline}"
            )
            rows.append(table.assign(asked=asked, measure=measure))
    kept = ["asked", "measure", "baseline", "method", "items", "clusters", "baseline_mean", "mean", "difference", "low",
            "high", "p_holm", "detectable", "design_effect", "sentence"]  # fmt: skip
    return [{str(key): value for key, value in row.items()} for row in pd.concat(rows)[kept].to_dict("records")]


def _load() -> None:
    """In a process of its own: the model, and the threshold."""
    torch.set_num_threads(1)
    lens = interp.load(*emoji_vlm(torch.bfloat16))
    _LOADED.update(lens=lens, tau=calibrated(lens))


_LOADED: dict[str, Any] = {}


def _keep(parts: Path, number: int) -> int:
    rows = list(_asked_of_all(_LOADED["lens"], number, _LOADED["tau"]))
    write(parts / f"{number}.csv", pd.DataFrame(rows).to_csv(index=False))
    return number


def calibrated(lens: Any) -> float:
    """The threshold at which φ agrees best with attention, on scenes and questions of the training's kind."""
    scenes = [make_scene(FIRST - 1 - number) for number in range(16)]
    texts = [_prompt(ask(scene, number, 1)[0]) for number, scene in enumerate(scenes)]
    found = interp.sink_threshold(lens, CHANNELS, texts, [scene.picture() for scene in scenes])
    return float(found.attrs["tau_rel"])


def edits(tau: float) -> dict[str, Edit]:
    """Every condition of the study, by name."""
    conditions: dict[str, Edit] = {
        "VAR, the paper's settings": _constant(interp.VAR(channels=CHANNELS)),
        "VAR, the code's settings": _constant(interp.VAR(channels=CHANNELS, variant="code")),
        "VAR, calibrated": _constant(interp.VAR(channels=CHANNELS, tau_rel=tau)),
    }
    var = {"channels": CHANNELS, "tau_rel": BETWEEN, "min_nonsink_ratio": 0.1}
    for share in (0.2, 0.6, 1.0):
        conditions[f"VAR from {BETWEEN}, removes {share}"] = _constant(interp.VAR(**var, remove_fraction=share))
    conditions[f"VAR from {BETWEEN}, gives to text"] = _constant(interp.VAR(**var, give_to="text"))
    conditions["text sinks masked"] = _constant(
        interp.GroupKnockOut(channels=CHANNELS, tau_rel=tau, group="text_sinks")
    )
    for count in (SOME, MANY):
        conditions |= {
            f"{count} with the highest φ masked": _masked(lambda r, n: _extreme(r.phi, n), count),
            f"{count} that receive the most masked": _masked(lambda r, n: _extreme(r.received, n), count),
            f"{count} random masked": _masked(_random, count),
        }
    conditions[f"{SOME} that show things masked"] = _masked(lambda r, n: _showing(r, n, True), SOME)
    conditions[f"{SOME} that show background masked"] = _masked(lambda r, n: _showing(r, n, False), SOME)
    conditions["the image masked"] = _constant(interp.KnockOut(keys="images", queries="text"))
    return conditions


def _constant(edit: Any) -> Edit:
    return lambda _: edit


def _masked(chosen: Callable[[Reading, int], np.ndarray], count: int) -> Edit:
    """A knock-out of some image tokens in each layer."""

    def edit(reading: Reading) -> Any:
        together = None
        for layer, tokens in enumerate(chosen(reading, count)):
            keys = tuple(int(token) + reading.first for token in sorted(tokens))
            one = interp.KnockOut(keys=keys, queries="text", layers=layer)
            together = one if together is None else together | one
        return together

    return edit


def _extreme(values: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-values, 1, kind="stable")[:, :count]


def _random(reading: Reading, count: int) -> np.ndarray:
    draw = np.random.default_rng([reading.seed, count])
    return np.stack([draw.choice(reading.phi.shape[1], count, replace=False) for _ in reading.phi])


def _showing(reading: Reading, count: int, things: bool) -> np.ndarray:
    """In all layers the same; fewer where a scene has fewer."""
    among = np.flatnonzero(reading.shows == things)
    draw = np.random.default_rng([reading.seed, count, 2])
    return np.tile(draw.permutation(among)[:count], (len(reading.phi), 1))


def _asked_of_all(lens: Any, number: int, tau: float) -> Iterator[dict[str, Any]]:
    scene = make_scene(FIRST + number, held_out=True)
    asked = ask(scene, number, EACH, held_out=True)
    conditions = {"none": answered(lens, scene, asked)}
    reading = _read(lens, scene, asked, number)
    for name, edit in edits(tau).items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*changed nothing")  # an answer like any other, here
            with lens.apply(edit(reading)):
                conditions[name] = answered(lens, scene, asked)
    for name, answers in conditions.items():
        for place, (question, (right, loss)) in enumerate(zip(asked, answers, strict=True)):
            yield {
                "edit": name, "scene": number, "question": place, "about": question.about, "absent": question.absent,
                "right": right, "loss": loss,
            }  # fmt: skip


def _prompt(question: Question) -> str:
    return f"{BEFORE}<image>{AFTER.format(question=question.text)}"


def _given(scene: Scene, asked: list[Question]) -> tuple[list[str], list[Any]]:
    texts = [_prompt(question) + ANSWER.format(answer=question.answer) for question in asked]
    return texts, [scene.picture()] * len(asked)


@torch.no_grad()
def answered(lens: Any, scene: Scene, asked: list[Question]) -> list[tuple[bool, float]]:
    """Whether each question is answered to the letter, and the loss of its answer."""
    texts, pictures = _given(scene, asked)
    logits = lens(texts, images=pictures).float()
    found = []
    for row, question in enumerate(asked):
        wanted = torch.tensor(lens.tokenizer.encode(ANSWER.format(answer=question.answer), add_special_tokens=False))
        said = logits[row, -len(wanted) - 1 : -1]  # texts are padded on the left and end with their answers
        right = bool((said.argmax(-1) == wanted).all())
        found.append((right, float(torch.nn.functional.cross_entropy(said, wanted))))
    return found


@torch.no_grad()
def _read(lens: Any, scene: Scene, asked: list[Question], seed: int) -> Reading:
    texts, pictures = _given(scene, asked)
    first = len(lens.tokenizer.encode(BEFORE, add_special_tokens=False))
    shown = patch_labels([scene])[0][0] != BACKGROUND
    phi, received = [], []
    for row, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        _, cache = lens.run_with_cache(
            text, images=picture, names_filter=lambda name: name.endswith(("hook_pattern", "hook_resid_pre"))
        )
        image = slice(first, first + len(shown))
        layers = range(lens.cfg.n_layers)
        if row == 0:
            phi = [sink_values(cache["resid_pre", layer][0, image], [CHANNELS]) for layer in layers]
        received.append(
            torch.stack([cache["pattern", layer][0, :, image.stop :, image].float().mean((0, 1)) for layer in layers])
        )
    return Reading(first, torch.stack(phi).numpy(), torch.stack(received).mean(0).numpy(), shown.numpy(), seed)
