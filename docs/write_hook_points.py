"""Writes `hook_points.md` from the table in `interp.seam.points`: `python -m docs.write_hook_points`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from interp.seam import points

PAGE = Path(__file__).with_name("hook_points.md")

HEAD = """# Hook points of a Lens

Names, shapes and axis order are TransformerLens'. This page is written by `python -m docs.write_hook_points`.

* **edit**: the value that a hook returns replaces the activation (and is what the cache stores); gradients flow.
* **read**: hooks see it; returning a value raises.
* **observable**: computed by a fused kernel only while somebody hooks it; returning a value raises.

`run_with_cache()` without a filter stores the edit points that grow with positions, not with their square: scores,
patterns and observables are stored only when named. Parallel blocks (GPT-NeoX, Phi, Cohere) have no `hook_resid_mid`;
asking for a point that a model does not have raises with the reason. Keys and values of new tokens fire before the
cache stores them when the Lens made the cache (it does whenever `use_cache` is on); on a cache from elsewhere hooks may
read and an edit is refused.

Of models that compute softmax in their own code (Bloom, MPT, GPT-J, ...) attention has `hook_attn_scores`,
`hook_pattern` and `hook_z`, all three the model's own tensors, and `hook_column_mass` and `hook_row_entropy` of the
pattern as other hooks leave it.

## Encoder-decoders

`blocks.{l}` is the decoder and `encoder.blocks.{l}` the encoder, each with the points below; `encoder.hook_embed` and
`encoder.ln_final.hook_normalized` are the encoder's. Attention of the decoder to the encoder's tokens is
`blocks.{l}.cross_attn`: its keys and values are those of the encoder's tokens, all of them, at every step of a
generation, so an edit of them acts in the steps that are hooked and is not stored. T5Gemma 2 attends to both texts at
once, in `blocks.{l}.attn`, the decoder's tokens first. T5 adds a bias by position to its scores: `hook_attn_scores` and
`hook_pattern` have it; observables would ignore it and are refused.

TransformerLens' bridge (4.3) calls the stacks `encoder_blocks.{l}` and `decoder_blocks.{l}` and the decoder's own
attention `self_attn`; `cross_attn`, `hook_cross_attn_out` and `hook_resid_mid2` are its names, the last two of T5 and
not of BART. There patterns of encoder-decoders fire under eager attention alone, what a hook returns on them changes
nothing, and `hook_attn_scores` of BART is the pattern once more.
"""

SEEING = """
## The part that sees

Of a model that was loaded with the processor of its images, `vision.blocks.{l}` are the blocks of its tower, with the
points above ([models that see](images.md)); the first axis counts tiles or images.
"""

COMING = """
## Coming from TransformerLens

`lens = interp.load("gpt2")` stands where `TransformerBridge.boot_transformers("gpt2")` or
`HookedTransformer.from_pretrained` stood. `tests/lens/test_tutorials.py` has the calls of TransformerLens' two
best-known tutorials, on induction heads and on two names; `tests/lens/test_theirs_and_ours.py` goes through every
method and keyword of a bridge and its cache: what a Lens does not take it refuses in one sentence.

What works as there: `run_with_cache` (`names_filter`, `remove_batch_dim`, `pos_slice`, `stop_at_layer`, ...),
`run_with_hooks`, `add_hook`, `reset_hooks`, `return_type`, `loss_per_token`, `prepend_bos`, `to_tokens`,
`to_str_tokens`, `to_string`, `to_single_token`, `get_token_position`, `tokens_to_residual_directions`, `loss_fn`,
`cfg`, `W_E`, `W_U`, `W_Q`, `W_K`, `W_V`, `W_O`, `QK`, `OV`, the cache's `accumulated_resid`, `decompose_resid`,
`stack_head_results`, `apply_ln_to_stack` and `logit_attrs`, `transformer_lens.patching` and `utilities.test_prompt`.

What differs:

* **No bos token is put before a text** unless the tokenizer does so or `prepend_bos=True` asks for it.
* **Weights are never processed** (no folding, no centring): `apply_ln_to_stack` has the final norm's weights in it,
  so that its dot product with `tokens_to_residual_directions` is what a part adds to a logit.
* **Patterns are not stored** by `run_with_cache()`: `cache["pattern", 0]` computes one from queries and keys, and
  `names_filter` stores those of the model itself. Under interventions, with `pos_slice` and with a cache of keys,
  name them.
* **Texts are padded on the left**, and `padding_side="right"` is there.
* **`generate` is transformers' own**: greedy unless `do_sample=True`, 64 new tokens, text in and text out.
* **Keys and values have as many heads as the model stores**, in hooks and in `W_K` and `W_V`; `QK` and `OV` have all
  heads.
* Queries and keys of rotary models are `hook_rot_q` and `hook_rot_k`; neurons and norms inside blocks are not shown.
"""


def rows(title: str, prefix: str, listed: Iterable[points.Point]) -> str:
    return f"\n## {title}\n{table(prefix, listed)}"


def table(prefix: str, listed: Iterable[points.Point]) -> str:
    lines = ["\n| name | shape | mode | what |", "| --- | --- | --- | --- |"]
    lines += [f"| `{prefix}{p.name}` | {p.shape} | {p.mode} | {p.meaning} |" for p in listed]
    return "\n".join(lines) + "\n"


def page() -> str:
    rotary = points.attention_points(rotary=True)
    plain = [p for p in points.attention_points(rotary=False) if p not in rotary]
    alone = points.attention_points(rotary=False, whole=True)
    crossing = [p for p in points.crossing(alone) if p.mode != "observable"]
    return (
        HEAD
        + rows("Outside the blocks", "", [points.EMBED])
        + rows("After the last block", "ln_final.", [points.FINAL])
        + rows("Residual stream of block l", "blocks.{l}.", points.RESIDUAL)
        + rows("Attention of block l", "blocks.{l}.", rotary)
        + rows("Beside it, in a decoder that has an encoder", "blocks.{l}.", [*points.CROSS, *crossing])
        + rows("Instead, in models without rotary embedding (GPT-2)", "blocks.{l}.", plain)
        + SEEING
        + table("vision.", [points.PROJECTED])
        + COMING
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
