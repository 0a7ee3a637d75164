"""The model types: all that two auto classes know, and a few of those that a Lens is not made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from transformers.models.auto import modeling_auto as auto

FAMILIES: dict[str, tuple[Any, Any, str]] = {
    "causal": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM, "language models"),
    "vl": (
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        transformers.AutoModelForImageTextToText,
        "models of images and text, reading text",
    ),
    "variant": (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        transformers.AutoModelForCausalLM,
        "settings of released models that differ from their config's defaults",
    ),
    "seq2seq": (
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        transformers.AutoModelForSeq2SeqLM,
        "encoder-decoders, a sample",
    ),
    "masked": (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, transformers.AutoModelForMaskedLM, "encoders, a sample"),
}
"""Family -> (its types with the names of their classes, the auto class that builds them, what it is)."""
SAMPLES = {
    "seq2seq": ("t5", "bart", "mbart", "m2m_100", "t5gemma", "pegasus", "led"),
    "masked": ("bert", "roberta", "distilbert", "modernbert", "deberta-v2", "electra", "albert"),
}
QUICK = (
    "llama", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5_text", "mistral", "mixtral", "gemma2",
    "gemma3_text", "gemma3n_text", "gemma4_text", "gpt_oss", "phi3", "deepseek_v3", "deepseek_v4", "kimi_linear",
    "glm4", "glm4_moe", "granite", "granitemoehybrid", "nemotron_h", "lfm2", "olmo2", "olmo3", "smollm3", "minimax",
    "minimax_m2", "falcon_h1", "jamba", "bamba", "zamba2", "llama4_text", "cohere2", "gpt2", "gpt_neox", "bloom",
    "falcon", "mamba2", "opt", "phi", "mimo_v2_flash", "vl:gemma3", "vl:qwen3_vl", "vl:llava", "seq2seq:t5",
)  # fmt: skip
"""What is released most, and one of each construction that took work: in a minute."""


def targets(names: Sequence[str]) -> list[str]:
    """`family:kind` of what is named, where a bare name is a language model; of everything where nothing is."""
    if names:
        return [name if ":" in name else f"causal:{name}" for name in names]
    from benchmarks.coverage.exceptions import VARIANTS

    whole = {family: tuple(FAMILIES[family][0]) for family in ("causal", "vl")} | {"variant": tuple(VARIANTS)} | SAMPLES
    return [f"{family}:{kind}" for family, kinds in whole.items() for kind in kinds]


def quick() -> list[str]:
    """The quick ones that this release of transformers knows."""
    known = [target.split(":") for target in targets(QUICK)]
    return [f"{family}:{kind}" for family, kind in known if kind in FAMILIES[family][0]]
