"""Processors and towers that are wrong: a sentence that names what it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.errors import InterpError
from tests.vision_models import built, picture, shared

TEXT = "w1 <image> w2"


def measures(lens: Any) -> list[Callable[[], Any]]:
    seen = picture()
    return [
        lambda: lens.generate(TEXT, 2, images=seen),
        lambda: lens.score(TEXT, "w3 w4", images=seen),
        lambda: lens(TEXT, images=seen, return_type="loss"),
        lambda: interp.probe(lens, TEXT, ["text_sinks"], images=seen),
    ]


@pytest.mark.parametrize(
    ("name", "part", "value", "said"),
    [
        ("llava", "multi_modal_projector.linear_1.weight", torch.nan, r"the parameter .*linear_1.weight has 1 of"),
        ("llava", "encoder.layers.0.mlp.fc1.weight", 3e38, r"first in .*vision_tower"),
        ("qwen2_5_vl", "visual.blocks.1.attn.proj.weight", torch.nan, r"blocks.1.attn.proj.weight has 1 of"),
    ],
)
def test_a_tower_that_is_lost_is_named(name: str, part: str, value: float, said: str) -> None:
    """A text alone is finite there: to see why, the model has to read the images again."""
    model, processor = built(name)
    lens = interp.load(model, processor)
    parameter = next(found for at, found in model.named_parameters() if at.endswith(part))
    with torch.no_grad():
        parameter[(0,) * parameter.ndim if value != value else ...] = value
    for measure in measures(lens):
        with pytest.raises(InterpError, match=said):
            measure()


@pytest.mark.parametrize("said", [{"image_mean": [torch.nan] * 3}, {"image_std": [0, 0, 0]}, {"rescale_factor": 1e300}])
@pytest.mark.filterwarnings("ignore:(divide|invalid|overflow):RuntimeWarning")
def test_pixels_that_are_lost_are_the_processors(said: dict[str, Any]) -> None:
    model, processor = shared("llava")
    processor = copy.deepcopy(processor)
    for name, value in said.items():
        setattr(processor.image_processor, name, value)
    for measure in measures(interp.load(model, processor)):
        with pytest.raises(InterpError, match="mend image_mean, image_std and rescale_factor"):
            measure()


@pytest.mark.parametrize(
    ("name", "of", "said"),
    [
        ("llava", "self", {"patch_size": 7}),
        ("llava", "self", {"num_additional_image_tokens": -5}),
        ("llava", "image_processor", {"crop_size": {"height": 28, "width": 28}}),
        ("idefics3", "self", {"image_seq_len": 2}),
    ],
)
def test_a_processor_of_another_model_is_a_sentence(name: str, of: str, said: dict[str, Any]) -> None:
    model, processor = shared(name)
    processor = copy.deepcopy(processor)
    for field, value in said.items():
        setattr(processor if of == "self" else processor.image_processor, field, value)
    for measure in measures(interp.load(model, processor)):
        with pytest.raises(InterpError):
            measure()


@pytest.mark.parametrize(
    ("name", "part", "field", "value"),
    [
        ("llava", "model", "vision_feature_layer", 99),
        ("qwen2_5_vl", "model.visual", "window_size", 0),
    ],
)
def test_a_config_that_no_image_fits_is_a_sentence(
    name: str, part: str, field: str, value: int, tmp_path: Path
) -> None:
    model, processor = built(name)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (said if part == "model" else said["vision_config"])[field] = value
    (tmp_path / "config.json").write_text(json.dumps(said))
    for measure in measures(interp.load(tmp_path)):
        with pytest.raises(InterpError):
            measure()


def test_what_a_hook_raises_is_the_hooks() -> None:
    def hook(value: Any, hook: Any) -> None:
        raise ValueError("mine")

    lens = interp.load(*shared("llava"))
    with pytest.raises(ValueError, match=r"^mine$"):
        lens.run_with_hooks(TEXT, images=picture(), fwd_hooks=[("vision.blocks.0.hook_resid_post", hook)])


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("processor", "num_additional_image_tokens", 10**7),
        ("processor", "image_seq_len", 10**9),
        ("processor", "image_seq_length", 10**9),
        ("pictures", "merge_size", 10**6),
        ("pictures", "size", {"height": 10**4, "width": 10**4}),
        ("pictures", "size", {"shortest_edge": 10**9}),
        ("pictures", "max_image_size", {"longest_edge": 10**12}),
    ],
)
def test_what_no_model_reads_is_refused_before_it_is_made(where: str, name: str, value: object) -> None:
    """It would take minutes and gigabytes before anything else looks at it."""
    model, processor = built("llava")
    setattr(processor if where == "processor" else processor.image_processor, name, value)
    with pytest.raises(InterpError, match="none that is meant is above"):
        interp.Lens(model, processor)
