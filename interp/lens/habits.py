"""What to do instead, for names of TransformerLens that a Lens does not have."""

from __future__ import annotations

import re
from collections.abc import Collection

POINTS = {
    r"^encoder_blocks\..*": "the blocks of an encoder are encoder.blocks.0, encoder.blocks.1, ...",
    r"^decoder_blocks\..*": "the blocks of a decoder are blocks.0, blocks.1, ..., with attn and cross_attn",
    r"attn\.hook_q$": "queries are shown after rotation: hook {0}attn.hook_rot_q",
    r"attn\.hook_k$": "keys are shown after rotation, {0}attn.hook_rot_k, and before, {0}attn.hook_pre_rot_k",
    r"attn\.hook_rot_[qk]$": "this model does not rotate its keys: hook {0}attn.hook_q or hook_k",
    r"attn\.hook_result$": "what each head adds is computed from z: cache.stack_head_results() has it",
    r"hook_(q|k|v|qkv|attn|mlp)_(input|in)$": "a Lens shows the stream before the norm: hook {0}hook_resid_pre",
    r"hook_pos_embed$": "positions are in what enters the first block: hook blocks.0.hook_resid_pre",
    r"hook_(scale|normalized)$": "a Lens shows the final norm only: hook ln_final.hook_normalized",
    r"mlp\.hook_\w+$": "a Lens shows what an MLP adds, not its neurons: hook {0}hook_mlp_out",
}
"""Ends of hook points' names, with {0} for what stands before them."""
KEYWORDS = {
    "start_at_layer": "to start from a stream of your own, hook blocks.0.hook_resid_pre and return it",
    "past_kv_cache": "pass past_key_values=lens.last_cache",
    "labels": "ask for return_type='loss', or compute one of the logits",
    "pixel_values": "a Lens reads text",
    "input_values": "a Lens reads text",
}
OF_GENERATION = {
    "freq_penalty": "transformers has repetition_penalty",
    "return_type": "text in gives text, tokens in give tokens: pass lens.to_tokens(text) for those",
    "return_cache": "name what to keep: names_filter=... returns (output, cache)",
    "return_input_tokens": "lens.to_tokens(prompt) has them",
    "device": "activations stay where the model is; move the cache: cache.to(device)",
    "pixel_values": "a Lens reads text",
    "input_values": "a Lens reads text",
}
"""Keywords of TransformerLens' `generate` that transformers does not know."""
PROCESSED = "weights are the model's own and stay as they are; a cache applies the final norm with its weights"
NEURONS = "a Lens shows what an MLP adds, not its neurons: hook hook_mlp_out, or read lens.model"
POSITIONS = "positions are in what enters the first block: hook blocks.0.hook_resid_pre"
LOADING = "interp.load(name) makes a Lens"
PARTS = "lens.anatomy has the parts of the model, lens.hook_dict the hook points"
TEXT_ALONE = "a Lens reads text with a language model"
MEMBERS = {
    **dict.fromkeys(("W_in", "W_out", "W_gate", "b_in", "b_out"), NEURONS),
    **dict.fromkeys(("W_pos", "W_E_pos", "pos_embed"), POSITIONS),
    **dict.fromkeys(("enable_compatibility_mode", "process_weights", "fold_layer_norm", "set_use_attn_in",
                     "set_use_split_qkv_input", "set_use_hook_mlp_in"), PROCESSED),
    **dict.fromkeys(("boot_transformers", "boot_native", "boot_tl_legacy", "from_pretrained",
                     "from_pretrained_no_processing"), LOADING),
    **dict.fromkeys(("check_model_support", "list_supported_models"),
                    "interp.load tries any causal language model and says what does not fit"),
    **dict.fromkeys(("block_hooks", "block_submodules", "blocks_with", "stack_params_for", "get_hook_point",
                     "hook_aliases", "get_params", "clear_hook_registry"), PARTS),
    **dict.fromkeys(("tl_parameters", "tl_named_parameters", "init_weights", "original_model", "close"),
                    "lens.model is the transformers model itself"),
    **dict.fromkeys(("encoder_output", "predict_next_sentence", "prepare_multimodal_inputs", "diffusion_generate",
                     "to_sentence_pair_tokens"), TEXT_ALONE),
    **dict.fromkeys(("layer_types", "composition_layer_indices"), "lens.cfg.attn_types and attention_layers say it"),
    **dict.fromkeys(("QK_for_attn_layers", "OV_for_attn_layers"), "lens.QK and lens.OV are of all layers"),
    "set_use_attn_result": "what each head adds is computed from z: cache.stack_head_results() has it",
    "all_composition_scores": "transformer_lens.utilities.composition_scores computes them of lens.OV and lens.QK",
    "embed": "run_with_cache(text, names_filter='hook_embed') has what the embedding puts out, lens.W_E its weight",
    "input_to_embed": "run_with_cache(text, names_filter='hook_embed') has what the embedding puts out",
    "generate_stream": "lens.generate(..., streamer=...) takes a streamer of transformers",
    "hf_generate": "lens.generate is transformers' own generate, with hooks",
    "n_params_total": "lens.model.num_parameters()",
    "mps": "lens.to('mps')",
}  # fmt: skip
"""Methods and attributes, with what there is instead."""


def point_instead(name: str) -> str | None:
    """What to hook in place of a point that does not exist, or None where nobody knows."""
    for end, told in POINTS.items():
        if found := re.search(end, name):
            return told.format(name[: found.start()])
    return None


def keywords_instead(names: Collection[str]) -> str:
    """What to do in place of passing keywords, as a half sentence after those that were refused; or nothing."""
    told = [KEYWORDS[name] for name in names if name in KEYWORDS]
    return f" ({'; '.join(told)})" if told else ""
