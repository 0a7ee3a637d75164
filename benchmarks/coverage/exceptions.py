"""What the general rules do not know of a model type: fields by name, `sub_config.name` for those inside; `...` leaves
a field to the config itself."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

CLASSES = {
    "musicgen": ("MusicgenForCausalLM", "MusicgenDecoderConfig"),
    "musicgen_melody": ("MusicgenMelodyForCausalLM", "MusicgenMelodyDecoderConfig"),
    "evolla": ("EvollaForProteinText2Text", "EvollaConfig"),
}
"""Class of the model and of its config, where the auto class does not build what its own table names."""
CAUSAL_IF_TOLD = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod", "reformer",
)  # fmt: skip
"""Encoders that the auto class for language models builds: they see no future only where the config says so."""

LOCAL_GLOBAL = ["sliding_attention", "full_attention"]
MIXED = ["linear_attention", "full_attention", "linear_attention"]
CONVOLUTIONS = {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "full_attn_idxs": ...}
THREE_AXES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}


def inside(config: str, fields: Fields) -> Fields:
    """The same fields of a config that lies inside another."""
    return {f"{config}.{name}": value for name, value in fields.items()}


# the last layers of Gemma 3n and 4 attend to keys of earlier ones of their own kind, here the last two of six
SHARED_KEYS = {"num_hidden_layers": 6, "layer_types": LOCAL_GLOBAL * 3, "num_kv_shared_layers": 2,
               "hidden_size_per_layer_input": 16}  # fmt: skip
GEMMA_3N = SHARED_KEYS | {"intermediate_size": [96] * 6, "activation_sparsity_pattern": [0.5, *[0.0] * 5]}
GEMMA_4 = SHARED_KEYS | {"per_layer_config": {i: {"head_dim": 32} for i in (1, 3, 5)}}
ROTARY_BY_KIND = {"rope_parameters": {"full_attention": THREE_AXES, "sliding_attention": THREE_AXES},
                  "layer_types": [*LOCAL_GLOBAL, "sliding_attention"], "num_hidden_layers": 3}  # fmt: skip
DOTS_3 = {
    "layer_types": ["indexed_attention", "indexed_attention", "sliding_attention"], "num_hidden_layers": 3,
    "mlp_layer_types": ["dense", "sparse", "sparse"], "head_dim": 32,
    "per_layer_config": {2: {"num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 32,
                             "qk_nope_head_dim": 24}},
}  # fmt: skip
INKLING = {
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"], "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "unpadded_vocab_size": 128,
    "rel_extent": 32, "log_scaling_n_floor": 8, "n_layers_per_attn_res_block": 2, "d_rel": 8,
}  # fmt: skip
INKLING_1 = INKLING | {"mlp_layer_types": ["dense", "sparse", "sparse"]}
QWEN_4 = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
          "indexer_compress_ratio": 2, "hc_lowrank": 16, "output_gate_type": "silu", "ple_embed_dim": 32}  # fmt: skip
ZAMBA = {"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4}
MINIMAX_M3 = {"layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"]}
IMAGE_WORDS = {"<image>": 90, "IMGIMGAA": 91, "<|extra_200|>": 91, "<|visual token 000001|>": 92}

EXCEPTIONS: dict[str, Fields] = {
    "bamba": {"attn_layer_indices": [1]},
    "blenderbot": {"encoder_layers": 3, "decoder_layers": 3},
    "blt": {
        "vocab_size": 260, "encoder_hash_byte_group_vocab": 100, "encoder_config.hidden_size_global": 64,
        "decoder_config.hidden_size_global": 64, "patcher_config.vocab_size": 260, "encoder_config.vocab_size": 260,
        "decoder_config.vocab_size": 260,
    },
    "chameleon": {"vocabulary_map": IMAGE_WORDS, "vq_config.num_res_blocks": 1, "vq_config.base_channels": 32},
    "cohere_compass": inside("text_config", ROTARY_BY_KIND), "cohere_compass_text": ROTARY_BY_KIND,
    "dbrx": {"attn_config.rope_theta": 1e4, "attn_config.kv_n_heads": 2, "attn_config.clip_qkv": 8.0},
    "deepseek_ocr2": inside("text_config", {
        "mlp_layer_types": ["dense", "sparse", "sparse"], "num_hidden_layers": 3, "n_group": 1, "topk_group": 1}),
    "diffusion_gemma": inside("text_config", {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}),
    "dots1": {"layer_types": [*LOCAL_GLOBAL, "full_attention"], "n_shared_experts": 1, "moe_intermediate_size": 64},
    "dots3_note": inside("text_config", DOTS_3) | {"vision_config.adapter_in_dim": 64}, "dots3_note_text": DOTS_3,
    "emu3": {"vocabulary_map": IMAGE_WORDS, "vq_config.base_channels": 32},
    "ernie4_5_vl_moe": {"text_config.rope_parameters": THREE_AXES | {"mrope_section": [3, 3, 2]}},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128},
    "florence2": inside("vision_config", {
        "embed_dim": [16, 32, 32, 64], "num_heads": [2] * 4, "num_groups": [2] * 4, "depths": [1] * 4}),
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n": inside("text_config", GEMMA_3N), "gemma3n_text": GEMMA_3N,
    "gemma4": inside("text_config", GEMMA_4), "gemma4_text": GEMMA_4,
    "glm4v_moe": {"text_config.rope_parameters": THREE_AXES | {
        "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}},
    "glm5_next": {"text_config.index_kpool": 2},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2",
                        "spatial_target_layers": [0, 1, 2, 0]},
    "granitemoehybrid": {"layer_types": MIXED, "num_hidden_layers": 3},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "inkling2": inside("text_config", INKLING), "inkling2_text": INKLING,
    "inkling_mm_model": inside("text_config", INKLING_1), "inkling_text": INKLING_1,
    "laguna": {"layer_types": [*LOCAL_GLOBAL, "full_attention"]},
    "lfm2": CONVOLUTIONS, "lfm2_moe": CONVOLUTIONS | {"num_dense_layers": 1},
    "lfm2_vl": inside("text_config", CONVOLUTIONS),
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mellum": {"layer_types": [*LOCAL_GLOBAL, "full_attention"]},
    "minimax_m3_vl": inside("text_config", MINIMAX_M3), "minimax_m3_vl_text": MINIMAX_M3,
    "ministral": {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    "mistral": {"sliding_window": None},  # as released since v0.2
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0], "vision_config.image_size": [56, 56],
               "text_config.additional_vocab_size": 8, "vision_config.num_position_embeddings": 16},
    "perception_lm": {"vision_config.model_args": {"embed_dim": 64}},
    "qwen4_exp": inside("text_config", QWEN_4), "qwen4_exp_text": QWEN_4,
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 48], "attn_layers": ["local", "lsh", "local"],
                 "num_buckets": 2},
    "step3p7": {"text_config.sliding_window": 6},
    "xlm": {"asm": False},
    "xlstm": {"num_blocks": 3, "num_hidden_layers": 3, "chunk_size": 16, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": ZAMBA | {
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2, "num_hidden_layers": 6,
        "use_mamba_kernels": False},
    "zamba2": ZAMBA | {
        "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "hybrid_layer_ids": [1, 3],
        "kv_channels": 16, "num_query_groups": 4, "mamba_headdim": 16, "n_mamba_heads": 8},
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding", "hybrid"], "sliding_window": 6},
    **{kind: {"text_config.rope_parameters": THREE_AXES} for kind in (
        "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "paddleocr_vl", "glm_ocr", "glm46v", "glm4v", "glmga",
        "hunyuan_vl")},
}  # fmt: skip

VARIANTS: dict[str, Fields] = {
    "falcon@alibi": {"alibi": True, "new_decoder_architecture": False},
    "falcon@new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma4_text@31b": {
        "num_hidden_layers": 3, "layer_types": [*LOCAL_GLOBAL, "full_attention"], "attention_k_eq_v": True,
        "per_layer_config": {1: {"head_dim": 32, "num_key_value_heads": 1},
                             2: {"head_dim": 32, "num_key_value_heads": 1}},
        "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 32, "num_kv_shared_layers": 0},
    "gpt_bigcode@mha": {"multi_query": False},
    "llama@yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                       "original_max_position_embeddings": 64}},
    "mistral@v0.1": {"sliding_window": 6},
    "opt@350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "qwen2@sliding": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
                      "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
}  # fmt: skip
"""Settings of released models that differ from their config's defaults in ways that attention sees."""
