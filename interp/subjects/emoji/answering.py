"""Stage 3: projector and adapters learn from answers, through the frozen language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.subjects.emoji.language import adapt, language_model, merge
from interp.subjects.emoji.model import WEIGHTS, part, read_weights
from interp.subjects.emoji.projector import Projector
from interp.subjects.emoji.prompts import IGNORED, Packed, pack
from interp.subjects.emoji.questions import Question, ask
from interp.subjects.emoji.scenes import ACROSS, Scene, make_scene
from interp.subjects.emoji.stage import Pace, Stage
from interp.subjects.emoji.tower import PatchClassifier, pixels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUESTIONS = 8
"""Asked of each scene."""
PROJECTOR_SHARE = 0.03
"""Of the rate: at the adapters' own, what stage 2 has taught the projector is lost within a hundred steps."""


class Answering(nn.Module):
    """Tower, projector and language model, called with pictures and packed questions.

    It computes what transformers' LLaVA does with the same weights, but reads a picture once for many questions and
    makes logits for answers only.
    """

    def __init__(
        self, classifier: PatchClassifier, projector: Projector, model: PreTrainedModel, tokenizer: Any, adapted: bool
    ) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False).eval()
        self.projector, self.model, self.tokenizer = projector, model, tokenizer
        self.adapters = adapt(model) if adapted else {}

    def logits(self, pictures: Tensor, packed: Packed) -> Tensor:
        """At every place that has a target [target, vocabulary], scene by scene."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.model.dtype == torch.bfloat16):
            features = self.classifier.features(pictures)
        embedded = self.model.get_input_embeddings()(packed.ids)
        projected = self.projector(features.float()).to(embedded.dtype)
        embedded = embedded.masked_scatter(packed.pictures[..., None], projected)
        bias = torch.zeros(packed.mask.shape, dtype=embedded.dtype)
        bias.masked_fill_(~packed.mask, torch.finfo(embedded.dtype).min)
        states = self.model.model(
            inputs_embeds=embedded, attention_mask=bias, position_ids=packed.positions, use_cache=False
        ).last_hidden_state
        out: Tensor = self.model.lm_head(states[packed.targets != IGNORED])
        return out.float()

    def packed(self, asked: list[list[Question]]) -> Packed:
        return pack(self.tokenizer, asked, ACROSS**2)


def shipped(path: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> Answering:
    """emoji-vlm as it ships, its adapters merged."""
    weights, _ = read_weights(path)
    model, tokenizer = language_model(dtype)
    merge(model, part(weights, "adapter"))
    return around(weights, model, tokenizer, adapted=False)


def around(weights: dict[str, Tensor], model: PreTrainedModel, tokenizer: Any, *, adapted: bool) -> Answering:
    """A language model, and the tower and projector of these weights."""
    classifier = PatchClassifier()
    classifier.tower.load_state_dict(part(weights, "tower"))
    projector = Projector(classifier.tower.config.hidden_size, model.config.hidden_size)
    projector.load_state_dict(part(weights, "projector"))
    return Answering(classifier, projector, model, tokenizer, adapted)


class AnsweringStage(Stage):
    name: ClassVar[str] = "answering"

    def __init__(self, pace: Pace, answering: Answering, seed: int = 2) -> None:
        torch.manual_seed(seed)
        self.pace, self.seed, self.answering = pace, seed, answering
        for adapter in answering.adapters.values():
            nn.init.normal_(adapter.down, std=adapter.down.shape[1] ** -0.5)

    def trained(self) -> nn.Module:
        return self.answering

    def share_of_rate(self, weight: str) -> float:
        return PROJECTOR_SHARE if weight.startswith("projector.") else 1.0

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "seed": self.seed, "adapters": len(self.answering.adapters)}

    def losses(self, step: int) -> dict[str, Tensor]:
        first = (self.seed * 100_000 + step) * 1_000
        scenes = [make_scene(first + number) for number in range(self.pace.batch)]
        asked = [ask(scene, first + number, QUESTIONS) for number, scene in enumerate(scenes)]
        packed = self.answering.packed(asked)
        targets = packed.targets[packed.targets != IGNORED]
        return {"answer": F.cross_entropy(self.answering.logits(pixels(scenes), packed), targets)}


@torch.no_grad()
def answered(answering: Answering, scenes: list[Scene], asked: list[list[Question]]) -> list[list[bool]]:
    """Of every question whether greedy decoding would give its answer to the letter, the end included.

    Each token of the answer has to be the likeliest after the question and the answer's tokens before it.
    """
    packed = answering.packed(asked)
    wanted = packed.targets != IGNORED
    right = answering.logits(pixels(scenes), packed).argmax(-1) == packed.targets[wanted]
    scene, question = torch.where(wanted)[0], packed.question[wanted]
    return [
        [bool(right[(scene == row) & (question == number)].all()) for number in range(len(questions))]
        for row, questions in enumerate(asked)
    ]
