"""Do visual sinks matter to emoji-vlm, and does VAR help it? A study of held-out questions, asked under every edit.

Questions are in wordings that training never had, about scenes with pairs of kinds that it never had; a scene is a
cluster. An answer is right where greedy decoding would give it to the letter; its loss is the mean of its tokens', in
nats. Edits act on the text behind the image, the answer included. Which image tokens an edit masks is decided in each
layer by itself, from the tokens before the question, so all questions about a scene have the same.

They are asked in two ways: as in training, behind the words with which a conversation begins, and with the picture at
the very beginning, where the language model makes its sinks. Baselines: as many random image tokens, drawn anew in each
layer, as many that are no sinks, and all of the image. Whether the study could see a
difference at all is said by tokens that show things against as many that show background.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
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
SCENES, EACH = 128, 8
CHANNELS = 507
"""`interp.sink_channels` of the demo model."""
BETWEEN = 0.6
"""A threshold that some image tokens reach and others do not, where the two above find all of them or none."""
SOME, MANY = 5, 15
"""Of 49 image tokens: a tenth, and nearly a third."""
AS_TRAINED, FIRST_OF_ALL = "as trained", "picture first"
"""How a question is asked: the words with which every conversation begins stand before the picture, or nothing does."""
CONTRASTS = {
    AS_TRAINED: {
        f"{MANY} random masked": [f"{MANY} with the highest φ masked"],
        f"{SOME} that show background masked": [f"{SOME} that show things masked"],
    },
    FIRST_OF_ALL: {"as many random masked": ["sinks masked"], "as many others masked": ["sinks masked"]},
}
"""What else is compared, by how a question is asked: a baseline, and what is compared with it."""
PARTS = Path("build") / "visual_sinks"
"""Answers by scene, until all are there."""


@dataclass
class Reading:
    """What is known of a scene's image tokens before anything is masked, [layer, image token]."""

    begins: int
    """Their first place in the text."""
    share: np.ndarray
    """φ, as a share of its bound."""
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
    """Every edit against none, and sinks or things against other tokens: by how and what is asked."""
    tables = []
    for layout, own in answers.groupby("layout"):
        kinds = {"all": own, **{str(about): some for about, some in own.groupby("about")}}
        for (asked, some), (measure, better) in product(kinds.items(), {"right": "higher", "loss": "lower"}.items()):
            wide = some.pivot(index=["scene", "question"], columns="edit", values=measure).astype(float).reset_index()
            wide["item"] = wide["scene"].astype(str) + " " + wide.pop("question").astype(str)
            for baseline, methods in {"none": None, **CONTRASTS[str(layout)]}.items():
                family = f"{layout}, {asked}, {measure}, {baseline}"
                table = statistics.paired(wide, baseline, methods, cluster="scene", better=better, family=family)
                tables.append(table.assign(layout=layout, asked=asked, measure=measure))
    kept = ["layout", "asked", "measure", "baseline", "method", "items", "clusters", "baseline_mean", "mean",
            "difference", "low", "high", "p_holm", "detectable", "design_effect", "sentence"]  # fmt: skip
    return [{str(key): value for key, value in row.items()} for row in pd.concat(tables)[kept].to_dict("records")]


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
    texts = [_text(ask(scene, number, 1)[0], AS_TRAINED) for number, scene in enumerate(scenes)]
    found = interp.sink_threshold(lens, CHANNELS, texts, [scene.picture() for scene in scenes])
    return float(found.attrs["tau_rel"])


def edits(tau: float) -> dict[str, dict[str, Edit]]:
    """Every condition of the study by its name, by how a question is asked."""
    calibrated_var = {"channels": CHANNELS, "tau_rel": tau}
    var = {"channels": CHANNELS, "tau_rel": BETWEEN, "min_nonsink_ratio": 0.1}
    asked: dict[str, Edit] = {
        "VAR, the paper's settings": _constant(interp.VAR(channels=CHANNELS)),
        "VAR, the code's settings": _constant(interp.VAR(channels=CHANNELS, variant="code")),
    }
    for share in (0.6, 1.0):
        asked[f"VAR from {BETWEEN}, removes {share}"] = _constant(interp.VAR(**var, remove_fraction=share))
    asked[f"VAR from {BETWEEN}, gives to text"] = _constant(interp.VAR(**var, give_to="text"))
    asked["text sinks masked"] = _constant(interp.GroupKnockOut(**calibrated_var, group="text_sinks"))
    asked[f"{MANY} with the highest φ masked"] = _masked(partial(_highest, count=MANY))
    asked[f"{MANY} random masked"] = _masked(partial(_random, counts=MANY))
    asked[f"{SOME} that show things masked"] = _masked(partial(_showing, things=True))
    asked[f"{SOME} that show background masked"] = _masked(partial(_showing, things=False))
    asked["the image masked"] = _constant(interp.KnockOut(keys="images", queries="text"))

    first: dict[str, Edit] = {
        "VAR, the code's settings": _constant(interp.VAR(**calibrated_var, variant="code")),
        "sinks masked": _masked(partial(_sinks, tau=tau)),
        "as many random masked": _masked(lambda r: _random(r, [len(found) for found in _sinks(r, tau)])),
        "as many others masked": _masked(lambda r: _random(r, [len(found) for found in _sinks(r, tau)], tau)),
    }
    for share in (0.2, 0.6, 1.0):
        first[f"VAR, removes {share}"] = _constant(interp.VAR(**calibrated_var, remove_fraction=share))
    first["VAR, gives to text"] = _constant(interp.VAR(**calibrated_var, give_to="text"))
    return {AS_TRAINED: asked, FIRST_OF_ALL: first}


def _constant(edit: Any) -> Edit:
    return lambda _: edit


def _masked(chosen: Callable[[Reading], Sequence[Any]]) -> Edit:
    """A knock-out of some image tokens in each layer, where it has any."""

    def edit(reading: Reading) -> Any:
        together = None
        for layer, tokens in enumerate(chosen(reading)):
            if len(tokens):
                keys = tuple(int(token) + reading.begins for token in sorted(tokens))
                one = interp.KnockOut(keys=keys, queries="text", layers=layer)
                together = one if together is None else together | one
        return together

    return edit


def _highest(reading: Reading, count: int) -> list[Any]:
    return list(np.argsort(-reading.share, 1, kind="stable")[:, :count])


def _sinks(reading: Reading, tau: float) -> list[Any]:
    return [np.flatnonzero(share >= tau) for share in reading.share]


def _random(reading: Reading, counts: int | list[int], below: float = np.inf) -> list[Any]:
    """Anew in each layer; of the tokens whose share lies below a threshold, or of all."""
    draw = np.random.default_rng([reading.seed, 1])
    each = [counts] * len(reading.share) if isinstance(counts, int) else counts
    among = [np.flatnonzero(share < below) for share in reading.share]
    return [draw.permutation(some)[:count] for some, count in zip(among, each, strict=True)]


def _showing(reading: Reading, things: bool) -> list[Any]:
    """In all layers the same; fewer where a scene has fewer."""
    among = np.flatnonzero(reading.shows == things)
    chosen = np.random.default_rng([reading.seed, 2]).permutation(among)[:SOME]
    return [chosen] * len(reading.share)


def _asked_of_all(lens: Any, number: int, tau: float) -> Iterator[dict[str, Any]]:
    scene = make_scene(FIRST + number, held_out=True)
    asked = ask(scene, number, EACH, held_out=True)
    for layout, conditions in edits(tau).items():
        reading = _read(lens, scene, asked[0], layout, number)
        answers = {"none": answered(lens, scene, asked, layout)}
        for name, edit in conditions.items():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*changed nothing")  # an answer like any other, here
                made = edit(reading)
                with lens.apply(made) if made is not None else nullcontext():
                    answers[name] = answered(lens, scene, asked, layout)
        for name, found in answers.items():
            for place, (question, (right, loss)) in enumerate(zip(asked, found, strict=True)):
                yield {
                    "layout": layout, "edit": name, "scene": number, "question": place, "about": question.about,
                    "right": right, "loss": loss, "sinks": float((reading.share >= tau).sum(1).mean()),
                }  # fmt: skip


def _before(layout: str) -> str:
    return f"{BEFORE}<image>" if layout == AS_TRAINED else "<image>"


def _text(question: Question, layout: str) -> str:
    return _before(layout) + AFTER.format(question=question.text) + ANSWER.format(answer=question.answer)


@torch.no_grad()
def answered(lens: Any, scene: Scene, asked: list[Question], layout: str) -> list[tuple[bool, float]]:
    """Whether each question is answered to the letter, and the loss of its answer; the picture is read once for all."""
    encode = partial(lens.tokenizer.encode, add_special_tokens=False)
    prompts = [encode(AFTER.format(question=question.text)) for question in asked]
    answers = [encode(ANSWER.format(answer=question.answer)) for question in asked]
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [lens.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])

    lens(_before(layout), images=scene.picture(), use_cache=True)
    cache = lens.last_cache
    seen = torch.ones(len(rows), cache.get_seq_length(), dtype=torch.long)
    cache.batch_repeat_interleave(len(rows))
    logits = lens(ids, attention_mask=torch.cat([seen, real], 1), past_key_values=cache, use_cache=True).float()

    found = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        said, wanted = logits[row, len(prompt) - 1 : len(rows[row]) - 1], torch.tensor(answer)
        right = bool((said.argmax(-1) == wanted).all())
        found.append((right, float(torch.nn.functional.cross_entropy(said, wanted))))
    return found


@torch.no_grad()
def _read(lens: Any, scene: Scene, question: Question, layout: str, seed: int) -> Reading:
    begins = len(lens.tokenizer.encode(BEFORE, add_special_tokens=False)) if layout == AS_TRAINED else 0
    shows = (patch_labels([scene])[0][0] != BACKGROUND).numpy()
    _, cache = lens.run_with_cache(
        _text(question, layout), images=scene.picture(), names_filter=lambda name: name.endswith("hook_resid_pre")
    )
    image = slice(begins, begins + len(shows))
    phi = [sink_values(cache["resid_pre", layer][0, image], [CHANNELS]) for layer in range(lens.cfg.n_layers)]
    return Reading(begins, torch.stack(phi).numpy() / lens.cfg.d_model**0.5, shows, seed)


if __name__ == "__main__":
    main()
