"""emoji-vlm as it ships: a LLaVA of transformers' that answers about pictures, and a file that is what it was."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import InterpError
from interp.subjects.emoji.answering import answered, shipped
from interp.subjects.emoji.evaluation import EMPTY, evaluate, told
from interp.subjects.emoji.model import WEIGHTS, emoji_vlm, part, read_weights, write_weights
from interp.subjects.emoji.questions import ask
from interp.subjects.emoji.scenes import make_scene

SCENES = [make_scene(10**13 + number) for number in range(8)]


@cache
def ready() -> tuple[Any, Any]:
    return emoji_vlm()


def test_it_is_small() -> None:
    assert WEIGHTS.stat().st_size < 20_000_000


def test_it_is_llava_and_ready() -> None:
    model, _ = ready()
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert not model.training
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_it_generates_an_answer_about_a_picture() -> None:
    model, processor = ready()
    content = [{"type": "image"}, {"type": "text", "text": "How many things are there?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=SCENES[0].picture(), text=text, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(said, skip_special_tokens=True) in set("123456")


def test_it_sees() -> None:
    """Far better with the picture than without, on questions what is at a place: guessing is right in one of 173."""
    reading = shipped()
    asked = [ask(scene, 0, 3, about="place") for scene in SCENES]
    with_picture, blind = (
        sum(map(sum, answered(reading, pictures, asked))) for pictures in (SCENES, [EMPTY] * len(SCENES))
    )
    total = sum(map(len, asked))
    assert total >= 10
    assert with_picture > 0.25 * total > blind


def test_the_evaluation_counts_what_it_asks() -> None:
    table = evaluate(shipped(dtype=torch.bfloat16), 8)
    assert list(table) == [
        "new scenes", "new scenes, blind", "held-out pairs and wordings", "held-out pairs and wordings, blind"
    ]  # fmt: skip
    for row in table.values():
        assert row["all"]["questions"] == sum(cell["questions"] for key, cell in row.items() if key in
                                              {"presence", "place", "count", "relation"})  # fmt: skip
        assert all(0 <= cell["right"] <= 1 for cell in row.values())
    assert "new scenes, blind" in told(table)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    weights = {"tower.a": torch.tensor([1.5]), "adapter.x.up": torch.tensor([-2.0])}
    write_weights(tmp_path / "w.safetensors", weights, {"seed": 0})
    found, _ = read_weights(tmp_path / "w.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"tower.a": [1.5], "adapter.x.up": [-2.0]}
    assert list(part(found, "adapter")) == ["x.up"]


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_a_file_without_weights_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InterpError, match="no weights of emoji-vlm"):
        read_weights(tmp_path / "w.safetensors")


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    content = bytearray(write_weights(tmp_path / "w.safetensors", {"tower.a": torch.ones(64)}, {}).read_bytes())
    content[-1] ^= 1
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InterpError, match="damaged"):
        read_weights(tmp_path / "w.safetensors")
