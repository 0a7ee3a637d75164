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
    "prepend_bos": "the tokenizer's own special tokens are kept; put others into the tokens that you pass",
    "stop_at_layer": "to read the stream at a layer, hook its hook_resid_pre (lens.run_with_cache)",
    "start_at_layer": "to start from a stream of your own, hook blocks.0.hook_resid_pre and return it",
    "padding_side": "texts are padded on the left and masked",
    "loss_per_token": "lens.score(prompt, continuation) has the loss of every token",
    "past_kv_cache": "pass past_key_values=lens.last_cache",
}


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
