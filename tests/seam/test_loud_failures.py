"""Nothing is ignored in silence: names, edits, features and misuse each get one clear sentence."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as hf

import interp
from interp.attention import NAME
from interp.masks import same_function
from tests.models import SHAPE, shared, tiny, tokens


def nothing(value: object, hook: object) -> None:
    return None


@pytest.fixture
def lens() -> interp.Lens:
    return interp.load(shared("llama"))


def test_unknown_names_suggest_the_nearest(lens: interp.Lens) -> None:
    for call in (
        lambda: lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.0.attn.hook_patern", nothing)]),
        lambda: lens.add_hook("blocks.0.attn.hook_patern", nothing),
        lambda: lens.run_with_cache(tokens(), names_filter=["blocks.0.attn.hook_patern"]),
    ):
        with pytest.raises(interp.UnknownNameError, match=r"did you mean 'blocks\.0\.attn\.hook_pattern'"):
            call()
    with pytest.raises(interp.UnknownNameError, match="matches none"):
        lens.run_with_hooks(tokens(), fwd_hooks=[(lambda name: "nowhere" in name, nothing)])


def test_points_an_architecture_cannot_have_say_why() -> None:
    with pytest.raises(interp.UnknownNameError, match="parallel block"):
        interp.load(shared("gpt_neox")).run_with_cache(tokens(), names_filter="blocks.0.hook_resid_mid")


@pytest.mark.parametrize("point", ["attn.hook_column_mass", "attn.hook_lse", "attn.hook_cached_k"])
def test_read_only_points_refuse_edits(lens: interp.Lens, point: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        lens.run_with_hooks(tokens(), fwd_hooks=[(f"blocks.1.{point}", lambda x, hook: x * 2)])


def test_edits_on_a_foreign_cache_are_refused_and_reads_are_not(lens: interp.Lens) -> None:
    cache = hf.DynamicCache(config=lens.model.config)
    lens(tokens(), past_key_values=cache, use_cache=True)
    more = tokens(length=3, seed=4)
    point = "blocks.1.attn.hook_rot_k"
    seen: list[torch.Tensor] = []
    lens.run_with_hooks(
        more, past_key_values=cache, use_cache=True, fwd_hooks=[(point, lambda x, hook: seen.append(x))]
    )
    assert seen[0].shape[1] == 3
    with pytest.raises(ValueError, match="read-only"):
        lens.run_with_hooks(more, past_key_values=cache, use_cache=True, fwd_hooks=[(point, lambda x, hook: x * 2)])


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=128, hidden_size=64, n_layer=2, n_head=8)), "registry"),
        (lambda: hf.FalconForCausalLM(hf.FalconConfig(vocab_size=128, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=8)), "registry"), (lambda: hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=128,
        d_model=64, d_ff=64, num_layers=2, num_heads=4)), "encoder-decoder"), (lambda:
        hf.LlamaModel(hf.LlamaConfig(**SHAPE)), "language-model head"),
    ],
)  # fmt: skip
def test_models_a_lens_cannot_read(build: object, says: str) -> None:
    model = build().eval()
    before = model.config._attn_implementation
    with pytest.raises(interp.UnsupportedModelError, match=says):
        interp.load(model)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(("name", "feature"), [("gemma2", "softcap"), ("gpt_oss", "learned sinks")])
def test_features_that_sdpa_would_drop(name: str, feature: str) -> None:
    model = tiny(name)
    model.config._attn_implementation_internal = "sdpa"
    with pytest.raises((interp.UnsupportedModelError, ValueError), match=f"{feature}|softcap"):
        interp.load(model)


def test_unknown_attention_arguments_are_refused(lens: interp.Lens) -> None:
    """A model that passes something we do not know may be delegated to, not recomputed."""
    bias = torch.zeros(2, 8, 12, 12)
    with pytest.raises(interp.UnsupportedModelError, match="position_bias"):
        lens.run_with_hooks(tokens(), position_bias=bias, fwd_hooks=[("blocks.0.attn.hook_lse", nothing)])


def test_an_exception_inside_leaves_the_model_as_it_was(lens: interp.Lens) -> None:
    bare = lens.model(tokens()).logits

    def explode(value: object, hook: object) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_pattern", explode)])
    assert lens.model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lens.model.modules())
    assert torch.equal(lens.model(tokens()).logits, bare)


def test_the_seam_outside_a_lens_call_is_refused() -> None:
    model = tiny("llama")
    model.set_attn_implementation(NAME)
    with pytest.raises(interp.UnsupportedModelError, match="outside a Lens call"):
        model(tokens())


def test_calling_the_lens_from_its_own_hook(lens: interp.Lens) -> None:
    with pytest.raises(interp.InterpError, match="inside one of its own hooks"):
        lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: lens(tokens()))])


def test_too_long_and_out_of_vocabulary(lens: interp.Lens) -> None:
    with pytest.raises(interp.InterpError, match="513 tokens exceed the context of 512"):
        lens(tokens(batch=1, length=513))
    with pytest.raises(interp.InterpError, match="vocabulary of 128"):
        lens(torch.tensor([[128]]))
    with pytest.raises(interp.InterpError, match="no tokenizer"):
        lens("some text")


def test_hooks_that_do_not_fire_are_reported(lens: interp.Lens) -> None:
    """A decoder layer that is skipped (here by hand) never reaches its points."""
    skip = lens.anatomy.blocks[1].block
    original, skip.forward = skip.forward, lambda hidden_states, *a, **k: hidden_states
    try:
        with pytest.warns(UserWarning, match=r"blocks\.1\.attn\.hook_z did not fire"):
            lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_z", nothing)])
    finally:
        skip.forward = original
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_z", nothing)])


def test_mask_functions_are_recognised_by_what_they_are() -> None:
    from transformers import masking_utils as masks

    assert same_function(masks.sliding_window_causal_mask_function(5), masks.sliding_window_causal_mask_function(5))
    assert not same_function(masks.sliding_window_causal_mask_function(5), masks.sliding_window_causal_mask_function(6))
    assert not same_function(masks.causal_mask_function, masks.bidirectional_mask_function)
    either = masks.or_masks(masks.causal_mask_function, masks.bidirectional_mask_function)
    assert not same_function(either, masks.causal_mask_function)
