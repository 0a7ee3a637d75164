"""Tiny vision-language models of real architectures with their processors, all random and made without a hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from interp.vision.processors import NoVideo, without_video

SPECIAL = {
    "image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "video_token": "<video>",
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<context>",
    "audio_token": "<audio>", "boa_token": "<boa>", "eoa_token": "<eoa>",
    "vision_start_token": "<vision_start>", "vision_end_token": "<vision_end>",
}  # fmt: skip
VOCABULARY = 256
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Word-level, with the tokens that processors look for."""
    names = ["<bos>", "<eos>", "<pad>", "<unk>", *SPECIAL.values(), "<global-img>", "<fake_token_around_image>",
             "<end_of_utterance>", *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))]  # fmt: skip
    words = [f"w{i}" for i in range(VOCABULARY - len(names) - 4)]
    vocabulary = {word: i for i, word in enumerate([*names, *words])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        name_or_path="tiny", add_bos_token=True, padding_side="left", extra_special_tokens=SPECIAL,
        additional_special_tokens=names[4 + len(SPECIAL):],
    )  # fmt: skip
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] %}{% if part['type'] == 'image' %} PLACE {% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    )
    return made


def _ids() -> dict[str, int]:
    made = tokenizer()
    return {name: made.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}


IDS = _ids()


def _clip(size: int = 28, patch: int = 14) -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(**TOWER, image_size=size, patch_size=patch)


def _siglip(size: int = 28, patch: int = 14, **more: Any) -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(**TOWER, image_size=size, patch_size=patch, **more)


def _llava() -> tuple[Any, Any]:
    config = hf.LlavaConfig(
        vision_config=_clip(56), text_config=hf.LlamaConfig(**TEXT), image_token_index=IDS["image_token"],
        image_seq_length=16, vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    pictures = hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    return hf.LlavaForConditionalGeneration(config), hf.LlavaProcessor(
        pictures, tokenizer(), patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _llava_next() -> tuple[Any, Any]:
    grid = [[28, 56], [56, 28], [56, 56]]
    config = hf.LlavaNextConfig(
        vision_config=_clip(28, 7), text_config=hf.LlamaConfig(**TEXT), image_token_index=IDS["image_token"],
        image_grid_pinpoints=grid, vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    pictures = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    return hf.LlavaNextForConditionalGeneration(config), hf.LlavaNextProcessor(
        pictures, tokenizer(), patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _llava_onevision() -> tuple[Any, Any]:
    grid = [[28, 56], [56, 28], [56, 56]]
    config = hf.LlavaOnevisionConfig(
        vision_config=_siglip(28, 7, vision_use_head=False), text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IDS["image_token"], video_token_index=IDS["video_token"], image_grid_pinpoints=grid,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    pictures = hf.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=grid)
    return hf.LlavaOnevisionForConditionalGeneration(config), hf.LlavaOnevisionProcessor(
        pictures, tokenizer(), NoVideo(), num_image_tokens=16, vision_feature_select_strategy="full"
    )


def _idefics3(kind: str = "Idefics3") -> tuple[Any, Any]:
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = getattr(hf, f"{kind}Config")(
        vision_config=vision, text_config=hf.LlamaConfig(**TEXT), scale_factor=2, image_token_id=IDS["image_token"],
        pad_token_id=2,
    )  # fmt: skip
    pictures = getattr(hf, f"{kind}ImageProcessorPil")(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    more = () if kind == "Idefics3" else (NoVideo(),)
    processor = getattr(hf, f"{kind}Processor")(pictures, tokenizer(), *more, image_seq_len=4)
    return getattr(hf, f"{kind}ForConditionalGeneration")(config), processor


def _qwen(kind: str) -> tuple[Any, Any]:
    text = {**TEXT, "rope_scaling": MROPE, "rope_parameters": MROPE}
    vision: dict[str, Any] = {
        "Qwen2VL": {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "patch_size": 14},
        "Qwen2_5_VL": {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64,
                       "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
        "Qwen3VL": {"depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64,
                    "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
    }[kind]  # fmt: skip
    if kind == "Qwen3VL":
        text = {**TEXT, "head_dim": 16, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    config = getattr(hf, f"{kind}Config")(
        text_config=text, vision_config=vision, image_token_id=IDS["image_token"], video_token_id=IDS["video_token"],
        vision_start_token_id=IDS["vision_start_token"], vision_end_token_id=IDS["vision_end_token"],
    )  # fmt: skip
    bounds = {"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 24}
    pictures = hf.Qwen2VLImageProcessorPil(size=bounds, patch_size=vision["patch_size"])
    model = getattr(hf, f"{kind}ForConditionalGeneration")(config)
    return model, getattr(hf, f"{kind}Processor")(pictures, tokenizer(), NoVideo())


def _internvl() -> tuple[Any, Any]:
    config = hf.InternVLConfig(
        vision_config={**TOWER, "image_size": [28, 28], "patch_size": [7, 7]}, text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IDS["context_image_token"], image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    pictures = hf.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    return hf.InternVLForConditionalGeneration(config), hf.InternVLProcessor(
        pictures, tokenizer(), NoVideo(), image_seq_length=4
    )


def _gemma3() -> tuple[Any, Any]:
    text = {**TEXT, "head_dim": 16, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4, "query_pre_attn_scalar": 16}  # fmt: skip
    config = hf.Gemma3Config(
        text_config=text, vision_config=_siglip(56, 14, vision_use_head=False).to_dict(), mm_tokens_per_image=4,
        image_token_index=IDS["image_token"], boi_token_index=IDS["boi_token"], eoi_token_index=IDS["eoi_token"],
    )  # fmt: skip
    pictures = hf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56}, image_seq_length=4)
    return hf.Gemma3ForConditionalGeneration(config), hf.Gemma3Processor(pictures, tokenizer(), image_seq_length=4)


def _gemma4() -> tuple[Any, Any]:
    text = {**TEXT, "head_dim": 16, "global_head_dim": 16, "sliding_window": 24, "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0}  # fmt: skip
    vision = {**TOWER, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2,
              "position_embedding_size": 64}  # fmt: skip
    config = hf.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=IDS["image_token"],
        boi_token_id=IDS["boi_token"], eoi_token_id=IDS["eoi_token"], video_token_id=IDS["video_token"],
    )  # fmt: skip
    pictures = hf.Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    return hf.Gemma4ForConditionalGeneration(config), hf.Gemma4Processor(None, pictures, tokenizer(), NoVideo())


def _paligemma() -> tuple[Any, Any]:
    config = hf.PaliGemmaConfig(
        vision_config=_siglip(56, 14, vision_use_head=False).to_dict(), image_token_index=IDS["image_token"],
        text_config={**TEXT, "model_type": "gemma", "head_dim": 16}, projection_dim=64, hidden_size=64,
    )  # fmt: skip
    pictures = hf.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    pictures.image_seq_length = 16
    return hf.PaliGemmaForConditionalGeneration(config), hf.PaliGemmaProcessor(pictures, tokenizer())


def _glm46v() -> tuple[Any, Any]:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    config = hf.Glm46VConfig(
        text_config={**TEXT, "model_type": "glm4v_text", "rope_parameters": rope},
        vision_config={"model_type": "glm4v_vision", "depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14,
                       "intermediate_size": 48, "out_hidden_size": 64, "image_size": 112},
        image_token_id=IDS["image_token"], video_token_id=IDS["video_token"],
        image_start_token_id=IDS["vision_start_token"], image_end_token_id=IDS["vision_end_token"],
    )  # fmt: skip
    bounds = {"shortest_edge": 28 * 28 * 2 * 2, "longest_edge": 28 * 28 * 24 * 2}
    return hf.Glm46VForConditionalGeneration(config), hf.Glm46VProcessor(
        hf.Glm46VImageProcessorPil(size=bounds), tokenizer(), NoVideo()
    )


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava, "llava_next": _llava_next, "llava_onevision": _llava_onevision, "idefics3": _idefics3,
    "smolvlm": lambda: _idefics3("SmolVLM"), "qwen2_vl": lambda: _qwen("Qwen2VL"),
    "qwen2_5_vl": lambda: _qwen("Qwen2_5_VL"), "qwen3_vl": lambda: _qwen("Qwen3VL"), "internvl": _internvl,
    "gemma3": _gemma3, "gemma4": _gemma4, "paligemma": _paligemma, "glm46v": _glm46v,
}  # fmt: skip
NAMES = tuple(BUILDERS)


def built(name: str) -> tuple[Any, Any]:
    """A model with seeded weights large enough that attention is far from uniform, and its processor."""
    torch.manual_seed(0)
    with without_video():
        try:
            model, processor = BUILDERS[name]()
        except ImportError as error:  # older releases have image processors that need torchvision
            pytest.skip(" ".join(str(error).split())[:100])
    place = processor.image_token
    processor.tokenizer.chat_template = processor.tokenizer.chat_template.replace("PLACE", place)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(0, 0.1)  # Gemma 3's projector, biases, newline tokens
            elif parameter.ndim == 2:
                parameter.mul_(3.0)
    return model.eval(), processor


@cache
def shared(name: str) -> tuple[Any, Any]:
    """One of each kind for tests that leave it as it was."""
    return built(name)


def picture(seed: int = 0, width: int = 90, height: int = 60) -> Image.Image:
    """Noise in colour."""
    numbers = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(numbers)
