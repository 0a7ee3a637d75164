"""emoji-vlm as transformers' LLaVA: the demo model, and what this project trained for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.files import tensors as tensor_file
from interp.subjects.emoji.language import IMAGE, TEMPLATE, language_model, merge
from interp.subjects.emoji.scenes import ACROSS, PATCH, SIDE
from interp.subjects.emoji.tower import DEVIATION, MEAN, tower_config

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

WEIGHTS = Path(__file__).parent / "emoji-vlm.safetensors"
PARTS = ("tower", "projector", "adapter")
"""What the names of its tensors begin with."""


def emoji_vlm(dtype: torch.dtype = torch.float32) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A small vision-language model, ready to be asked about pictures of emoji, and its processor.

    It is transformers' `LlavaForConditionalGeneration`, in evaluation mode on the CPU: the demo model
    (SmolLM2-135M-Instruct) with adapters of low rank merged into its attention, a CLIP vision tower of six layers and
    a projector. A picture of any size becomes 112 x 112 pixels and 49 tokens; it knows scenes like those of
    `make_scene` and nothing else.

        model, processor = emoji_vlm()
        asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cat?"}]}]
        text = processor.apply_chat_template(asked, add_generation_prompt=True)
        inputs = processor(images=make_scene(seed=3).picture(), text=text, return_tensors="pt")
        words = model.generate(**inputs, max_new_tokens=5)

    dtype: of all weights; those of this project are kept in float16. Raises `DemoMissingError` where the demo model's
    weights are not installed, and InterpError for a damaged file.
    """
    return assemble(read_weights(WEIGHTS)[0], dtype)


def assemble(weights: dict[str, Tensor], dtype: torch.dtype) -> tuple[Any, Any]:
    """The model and its processor from trained tensors, named `PART.NAME`."""
    from transformers import CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    text, tokenizer = language_model(dtype)
    merge(text, part(weights, "adapter"))
    config = LlavaConfig(
        vision_config=tower_config(), text_config=text.config, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1, image_seq_length=ACROSS**2, projector_hidden_act="gelu", tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):  # all of its parts are put in below
        model = LlavaForConditionalGeneration(config)
    tower, projector = CLIPVisionModel(config.vision_config), LlavaMultiModalProjector(config)
    tower.load_state_dict(part(weights, "tower"))
    projector.load_state_dict(part(weights, "projector"))
    model.model.language_model, model.lm_head = text.model, text.lm_head
    model.model.vision_tower, model.model.multi_modal_projector = tower.to(dtype), projector.to(dtype)
    model.generation_config = text.generation_config
    model.config.name_or_path = "emoji-vlm"
    return model.eval(), _processor(tokenizer)


def _processor(tokenizer: Any) -> Any:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    side = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(
        size=side, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3, do_convert_rgb=True
    )
    return LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        image_token=IMAGE, num_additional_image_tokens=1,
    )  # fmt: skip


def part(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one of `PARTS`, without its name."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in weights.items() if key.startswith(f"{name}.")}


def write_weights(path: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> Path:
    """Keep trained tensors in float16, with what is said about their training."""
    return tensor_file.write(path, {name: tensor.half() for name, tensor in weights.items()}, "emoji-vlm", about)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_weights` kept. Raises InterpError for a file that is missing or damaged."""
    try:
        tensors, about = tensor_file.read(path, "emoji-vlm")
    except tensor_file.UNREADABLE as error:
        raise InterpError(f"{path} holds no weights of emoji-vlm ({error}); install interp again.") from None
    if about is None:
        raise InterpError(f"{path} holds no weights of emoji-vlm; install interp again.")
    return tensors, dict(about)
