"""The packed sequence of the training computes what transformers' LLaVA does, one question at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from interp.subjects.emoji.answering import Answering, answered
from interp.subjects.emoji.kinds import KINDS
from interp.subjects.emoji.language import language_model, word_embeddings
from interp.subjects.emoji.model import assemble
from interp.subjects.emoji.projector import Projector
from interp.subjects.emoji.prompts import IGNORED
from interp.subjects.emoji.questions import Question, ask
from interp.subjects.emoji.scenes import make_scene
from interp.subjects.emoji.tower import PatchClassifier, pixels
from interp.subjects.emoji.training import trained_parts

SCENES = [make_scene(seed, count=count) for seed, count in ((1, 2), (2, 5))]


@cache
def random_parts() -> Answering:
    """A tower, a projector and adapters with random weights, around the demo model."""
    torch.manual_seed(0)
    model, tokenizer = language_model()
    answering = Answering(PatchClassifier(), Projector(256, 576), model, tokenizer, adapted=True)
    for adapter in answering.adapters.values():
        torch.nn.init.normal_(adapter.up, std=0.01)
    return answering.requires_grad_(False)


@cache
def llava() -> tuple[Any, Any]:
    return assemble(trained_parts(random_parts()), torch.float32)


def prompt(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def asked() -> list[list[Question]]:
    return [ask(scene, 0, 3) for scene in SCENES]


def test_packed_questions_are_those_of_llava() -> None:
    answering, (model, processor) = random_parts(), llava()
    packed = answering.packed(asked())
    logits = answering.logits(pixels(SCENES), packed)
    scene, _ = torch.where(packed.targets != IGNORED)
    question = packed.question[packed.targets != IGNORED]
    for row, questions in enumerate(asked()):
        for number, one in enumerate(questions):
            text = prompt(processor, one.text) + one.answer
            inputs = processor(images=SCENES[row].picture(), text=text, return_tensors="pt")
            with torch.no_grad():
                alone = model(**inputs).logits[0]
            mine = logits[(scene == row) & (question == number)]
            torch.testing.assert_close(mine, alone[-len(mine) :], atol=2e-3, rtol=1e-3)


def test_an_answer_is_right_where_greedy_decoding_gives_it() -> None:
    model, processor = llava()
    questions = [Question("presence", "Is there a cat?", answer, 0) for answer in ("yes", "no")]
    inputs = processor(images=SCENES[0].picture(), text=prompt(processor, questions[0].text), return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    first = processor.tokenizer.decode(said[:1])
    right = Question("presence", "Is there a cat?", first, 0)
    packed = random_parts().packed([[right]])
    with torch.no_grad():
        assert random_parts().logits(pixels(SCENES[:1]), packed)[0].argmax() == said[0]
    assert answered(random_parts(), SCENES[:1], [questions]) == [[False, False]]


def test_every_name_is_one_token() -> None:
    answering = random_parts()
    rows = word_embeddings(answering.model, answering.tokenizer, [kind.name for kind in KINDS])
    assert len(rows.unique(dim=0)) == len(KINDS)
    with pytest.raises(AssertionError, match="hippopotamus"):
        word_embeddings(answering.model, answering.tokenizer, ["cat", "hippopotamus"])


def test_pictures_of_any_size_and_mode_become_49_tokens() -> None:
    _, processor = llava()
    picture = SCENES[0].picture().resize((300, 97)).convert("RGBA")
    inputs = processor(images=picture, text=prompt(processor, "Is there a cat?"), return_tensors="pt")
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (inputs["input_ids"] == image).sum() == 49
    assert inputs["pixel_values"].shape == (1, 3, 112, 112)


def test_the_processor_reads_a_picture_as_the_training_does() -> None:
    _, processor = llava()
    inputs = processor(images=SCENES[0].picture(), text=prompt(processor, "?"), return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], pixels(SCENES[:1]), atol=1e-5, rtol=0)
