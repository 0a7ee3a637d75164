"""Models that compute their attention in their own code: what a Lens shows of it and changes in it, and what not."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch.overrides import TorchFunctionMode

import interp
from interp.seam import softmax_seam
from interp.seam.softmax_seam import axes_of
from tests.models import tokens

WIDE = {"vocab_size": 128, "hidden_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
BERT = {
    **WIDE, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 128, "max_position_embeddings": 512,
    "is_decoder": True,
}  # fmt: skip
GPT = {
    "vocab_size": 128, "n_embd": 64, "n_layer": 3, "n_head": 8, "n_positions": 512, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
FALCON = {**WIDE, "num_hidden_layers": 3, "num_attention_heads": 8, "alibi": False}

SOFTMAX = {
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**WIDE, n_layer=3, n_head=8)),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**GPT, rotary_dim=4)),
    "gpt_neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(**WIDE, num_layers=3, num_heads=8, max_position_embeddings=512, window_size=5,
                        attention_types=[[["global", "local", "global"], 1]])),
    "mpt": lambda: hf.MptForCausalLM(
        hf.MptConfig(vocab_size=128, d_model=64, n_layers=3, n_heads=8, max_seq_len=512, bos_token_id=0,
                     eos_token_id=1, pad_token_id=2)),
    "openai-gpt": lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**GPT)),
    "xglm": lambda: hf.XGLMForCausalLM(
        hf.XGLMConfig(vocab_size=128, d_model=64, ffn_dim=128, num_layers=3, attention_heads=8, bos_token_id=0,
                      eos_token_id=1, pad_token_id=2, max_position_embeddings=512)),
    "megatron-bert": lambda: hf.MegatronBertForCausalLM(hf.MegatronBertConfig(**BERT)),
    "xlnet": lambda: hf.XLNetLMHeadModel(
        hf.XLNetConfig(vocab_size=128, d_model=64, n_layer=3, n_head=8, d_inner=128, bos_token_id=0, eos_token_id=1,
                       pad_token_id=2)),
}  # fmt: skip
SDPA = {
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**FALCON)),
    "falcon, grouped": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2)
    ),
}
BUILDERS = SOFTMAX | SDPA
CACHED = [name for name in BUILDERS if name not in ("openai-gpt", "xlnet")]


@cache
def model_of(name: str) -> Any:
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim >= 2 else parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@cache
def lens_of(name: str) -> interp.Lens:
    return interp.load(model_of(name))


def causal(lens: interp.Lens) -> bool:
    """XLNet is not, nor is Megatron-BERT in some releases of transformers."""
    _, cache = lens.run_with_cache(tokens(), names_filter="blocks.1.attn.hook_pattern")
    return not bool(cache["pattern", 1].triu(1).any())


def nothing(value: object, hook: object) -> None:
    return None


PADDED = torch.ones_like(tokens())
PADDED[0, :4] = 0


def with_and_without_padding(model: Any) -> list[dict[str, torch.Tensor]]:
    """Keywords of a call; position ids follow the mask, as those that a Lens makes."""
    takes = inspect.signature(model.forward).parameters
    positions = {"position_ids": (PADDED.cumsum(-1) - 1).clamp_min(0)} if "position_ids" in takes else {}
    return [{}, {"attention_mask": PADDED, **positions}]


def own_patterns(model: Any, ids: torch.Tensor, **given: Any) -> list[torch.Tensor]:
    """What the model itself says; of a model that says it in eager mode only, in that."""
    before = model.config._attn_implementation
    model.config._attn_implementation_internal = "eager"
    try:
        told = model(ids, output_attentions=True, **given).attentions
    finally:
        model.config._attn_implementation_internal = before
    return list(told)


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_patterns_are_those_that_the_model_reports(name: str) -> None:
    model, lens = model_of(name), lens_of(name)
    for given in with_and_without_padding(model):
        own = own_patterns(model, tokens(), **given)
        _, cache = lens.run_with_cache(tokens(), names_filter=lambda n: "attn.hook_" in n, **given)
        real = given.get("attention_mask", torch.ones_like(tokens()))
        for layer, pattern in enumerate(own):
            seen = cache["pattern", layer]
            rows = real[:, None, :, None]
            torch.testing.assert_close(seen * rows, pattern * rows, rtol=0, atol=2e-6)
            columns = (seen * rows).sum(2)
            torch.testing.assert_close(cache["column_mass", layer] * real[:, None], columns * real[:, None])
            entropy = torch.special.entr(seen * rows).sum(-1)
            torch.testing.assert_close(cache["row_entropy", layer] * real[:, None], entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_looking_changes_no_bit(name: str) -> None:
    model, lens = model_of(name), lens_of(name)
    for given in with_and_without_padding(model):
        bare = model(tokens(), use_cache=False, **given).logits
        assert torch.equal(lens(tokens(), **given), bare)
        looked_at = lens.run_with_hooks(
            tokens(), fwd_hooks=[(lambda n: n.endswith("hook_z") or "resid" in n, nothing)], **given
        )
        assert torch.equal(looked_at, bare)
        if name in SOFTMAX:  # scores and pattern are the model's own tensors, too
            every = lens.run_with_hooks(tokens(), fwd_hooks=[(lambda n: ".attn." in n, nothing)], **given)
            assert torch.equal(every, bare)


@torch.no_grad()
def test_without_hooks_no_call_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = lens_of("bloom")

    def enter(mode: TorchFunctionMode) -> None:
        raise AssertionError("a mode was entered")

    monkeypatch.setattr(softmax_seam, "_push_mode", enter)
    lens(tokens())
    lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.hook_resid_post", nothing)])
    with pytest.raises(AssertionError, match="mode was entered"):
        lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_pattern", nothing)])


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_z_is_the_pattern_times_values(name: str) -> None:
    """A pattern that attends to the first token alone gives every position that token's z, head by head."""
    lens = lens_of(name)

    def first(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        out = torch.zeros_like(pattern)
        out[..., 0] = 1
        return out

    _, bare = lens.run_with_cache(tokens(), names_filter="blocks.1.attn.hook_z")
    with lens.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", first)]):
        _, cache = lens.run_with_cache(tokens(), names_filter="blocks.1.attn.hook_z")
    z = cache["z", 1]
    assert z.shape == (2, 12, 8, 8)
    assert torch.allclose(z, z[:, :1].expand_as(z), atol=1e-6)
    if causal(lens):
        assert torch.allclose(z[:, 0], bare["z", 1][:, 0], atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_edits_reach_the_logits_as_by_hand(name: str) -> None:
    """Scores lowered at one key, the pattern without that key renormalised, and z of the edited pattern agree."""
    lens, at = lens_of(name), "blocks.1.attn.hook_"
    bare = lens(tokens())

    def lowered(scores: torch.Tensor, hook: object) -> torch.Tensor:
        scores = scores.clone()
        scores[..., 5:, 3] = torch.finfo(scores.dtype).min
        return scores

    def without(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        pattern = pattern.clone()
        pattern[..., 5:, 3] = 0
        return pattern / pattern.sum(-1, keepdim=True)

    kept: list[torch.Tensor] = []
    by_scores = lens.run_with_hooks(tokens(), fwd_hooks=[(f"{at}attn_scores", lowered)])
    by_pattern = lens.run_with_hooks(
        tokens(), fwd_hooks=[(f"{at}pattern", without), (f"{at}z", lambda z, hook: kept.append(z.clone()))]
    )
    by_z = lens.run_with_hooks(tokens(), fwd_hooks=[(f"{at}z", lambda z, hook: kept[0])])
    assert not torch.allclose(by_pattern[:, 5:], bare[:, 5:], atol=1e-4)
    torch.testing.assert_close(by_scores, by_pattern, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_z, by_pattern, rtol=1e-4, atol=1e-4)
    if causal(lens):
        torch.testing.assert_close(by_pattern[:, :5], bare[:, :5], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_edited_pattern_against_the_block_written_out() -> None:
    """Bloom's second block recomputed with the pattern that the hook returned."""
    model, lens = model_of("bloom"), lens_of("bloom")
    even = lambda pattern, hook: torch.full_like(pattern, 1 / pattern.shape[-1])  # noqa: E731
    with lens.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", even)]):
        logits, cache = lens.run_with_cache(tokens(), names_filter=lambda n: "resid" in n or "hook_z" in n)
    block = model.transformer.h[1]
    resid = cache["resid_pre", 1]
    v = block.self_attention.query_key_value(block.input_layernorm(resid)).view(2, 12, 8, 3, 8)[..., 2, :]
    z = v.mean(1, keepdim=True).expand(-1, 12, -1, -1)
    torch.testing.assert_close(cache["z", 1], z, rtol=1e-4, atol=1e-5)
    mid = resid + block.self_attention.dense(z.flatten(2))
    torch.testing.assert_close(cache["resid_mid", 1], mid, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cache["resid_post", 1], block.mlp(block.post_attention_layernorm(mid), mid))
    last = cache["resid_post", 2]
    torch.testing.assert_close(logits, lens.unembed(lens.ln_final(last)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bloom", "gptj", "gpt_neo", "mpt", "xglm", "falcon"])
@torch.no_grad()
def test_what_heads_add_is_what_attention_adds(name: str) -> None:
    lens = lens_of(name)
    _, cache = lens.run_with_cache(tokens(batch=1), names_filter=lambda n: n.endswith(("hook_z", "hook_attn_out")))
    for layer, part in enumerate(lens.anatomy.blocks):
        heads = lens.head_contributions(layer, cache["z", layer])
        bias = getattr(part.out_projection, "bias", None)
        whole = heads.sum(0) + (0 if bias is None else bias)
        torch.testing.assert_close(whole, cache["attn_out", layer][0, -1], rtol=1e-4, atol=1e-4)
    assert "logit_lens" in interp.probe(lens, tokens(batch=1)[0], "logit_lens")


@pytest.mark.parametrize("name", CACHED)
@torch.no_grad()
def test_generating_with_hooks(name: str) -> None:
    model, lens = model_of(name), lens_of(name)
    for mask in (torch.ones_like(PADDED), PADDED):
        told = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        bare = model.generate(tokens(), attention_mask=mask, **told)
        shapes: list[tuple[int, ...]] = []
        note = lambda pattern, hook, shapes=shapes: shapes.append(tuple(pattern.shape))  # noqa: E731
        with lens.hooks(fwd_hooks=[("blocks.2.attn.hook_pattern", note)]):
            got = lens.generate(tokens(), max_new_tokens=4, min_new_tokens=4, attention_mask=mask)
        assert torch.equal(got, bare)
        rows = [1, 1, 1] if model.generation_config.use_cache else [13, 14, 15]  # MPT's own settings keep no cache
        assert shapes == [(2, 8, 12, 12), *((2, 8, row, keys) for row, keys in zip(rows, (13, 14, 15), strict=True))]


@torch.no_grad()
def test_models_that_keep_no_cache() -> None:
    model, lens = model_of("openai-gpt"), lens_of("openai-gpt")
    bare = model.generate(tokens(), attention_mask=torch.ones_like(tokens()), max_new_tokens=3, do_sample=False)
    assert torch.equal(lens.generate(tokens(), max_new_tokens=3), bare)
    with pytest.raises(interp.InterpError, match="OpenAIGPTLMHeadModel takes no cache"):
        lens(tokens(), use_cache=True)


@torch.no_grad()
def test_a_hook_that_raises_leaves_nothing_behind() -> None:
    model, lens = model_of("bloom"), lens_of("bloom")

    def fails(pattern: torch.Tensor, hook: object) -> None:
        raise KeyError("mine")

    bare = model(tokens()).logits
    with pytest.raises(KeyError, match="mine"):
        lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_pattern", fails)])
    assert torch.overrides._get_current_function_mode() is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_z", nothing)]), bare)


def test_gradients_pass_the_pattern() -> None:
    lens, grads = lens_of("gptj"), []
    with lens.hooks(bwd_hooks=[("blocks.0.attn.hook_pattern", lambda grad, hook: grads.append(grad))]):
        lens(tokens(), return_type="loss").backward()
    lens.model.zero_grad()
    assert grads[0].shape == (2, 8, 12, 12)
    assert bool(grads[0].abs().max() > 0)


@pytest.mark.parametrize("name", SDPA)
@torch.no_grad()
def test_a_call_of_sdpa_lacks_nothing(name: str) -> None:
    """Queries, keys, values and mask are its arguments: probes, policies and edits work."""
    lens = lens_of(name)
    assert lens.cfg.attn_types == ("global",) * 3
    _, cache = lens.run_with_cache(tokens(), names_filter=lambda n: ".attn." in n)
    for layer in range(3):
        event = cache["event", layer]
        torch.testing.assert_close(event.pattern(), cache["pattern", layer], rtol=1e-4, atol=1e-5)
    assert set(interp.probe(lens, tokens(batch=1)[0], ["attention_rank", "text_sinks"])) >= {"text_sinks"}
    ids = tokens(batch=1, length=24)
    with lens.apply(interp.SnapKV(budget=0.5, window=4)):
        lens.generate(ids, max_new_tokens=3)
    kept = lens.last_cache.report().kept
    assert int(kept.max()) < 26
    with lens.apply(interp.KnockOut(keys=0)):
        edited = lens(ids)
    assert not torch.equal(edited, lens(ids))


@pytest.mark.parametrize("name", SOFTMAX)
def test_what_stays_inside_the_module_says_why(name: str) -> None:
    lens = lens_of(name)
    assert lens.cfg.attn_types == ("other",) * 3
    kind = type(lens.anatomy.blocks[0].attention).__name__
    why = f"{kind} computes its attention itself; only scores, pattern, values and z can be reached"
    for point in ("hook_q", "hook_rot_q", "hook_k", "hook_v", "hook_cached_k", "hook_event", "hook_lse"):
        with pytest.raises(interp.UnknownNameError, match=why):
            lens.run_with_cache(tokens(), names_filter=f"blocks.0.attn.{point}")
    for intervention in (interp.ThinK(ratio=0.5), interp.KnockOut(keys=0)):
        with pytest.raises(interp.UnsupportedModelError, match=f"cannot act here: {why}"), lens.apply(intervention):
            pass
    policy, ids = interp.SnapKV(budget=0.5, window=4), tokens(batch=1)
    with pytest.raises(interp.InterpError, match=f"snapkv cannot act here: {why}"):
        interp.explain(lens, policy, ids, ids)
    with pytest.raises(interp.InterpError, match="computes its attention itself"):
        interp.probe(lens, tokens(batch=1)[0], "attention_rank")


@torch.no_grad()
def test_a_mask_that_carries_a_bias() -> None:
    """Falcon with ALiBi: its own eager code adds the bias twice, so the truth is what SDPA is given."""
    torch.manual_seed(0)
    model = hf.FalconForCausalLM(hf.FalconConfig(**FALCON | {"alibi": True})).eval()
    lens = interp.load(model)
    _, cache = lens.run_with_cache(tokens(), names_filter=lambda n: n.endswith(("hook_pattern", "hook_cached_v")))
    _, bare = lens.run_with_cache(tokens(), names_filter=lambda n: n.endswith("hook_z"))
    for layer in range(3):
        z = cache["pattern", layer] @ cache["cached_v", layer].transpose(1, 2)
        torch.testing.assert_close(z.transpose(1, 2), bare["z", layer], rtol=1e-4, atol=1e-5)
    with pytest.raises(interp.UnsupportedModelError, match="carries a bias"):
        lens.run_with_cache(tokens(), names_filter="blocks.0.attn.hook_column_mass")


@torch.no_grad()
def test_outputs_that_the_model_goes_on_to_change() -> None:
    """Falcon adds attention's output to the MLP's in place; what a hook kept of the MLP stays the MLP's."""
    model, lens = model_of("falcon"), lens_of("falcon")
    assert [block.writers.parallel for block in lens.anatomy.blocks] == [True] * 3
    logits, cache = lens.run_with_cache(tokens(), names_filter=lambda n: "attn" not in n or n.endswith("attn_out"))
    assert torch.equal(logits, model(tokens()).logits)
    for layer, block in enumerate(model.transformer.h):
        normed = block.input_layernorm(cache["resid_pre", layer])
        torch.testing.assert_close(cache["mlp_out", layer], block.mlp(normed))
        whole = cache["resid_pre", layer] + cache["attn_out", layer] + cache["mlp_out", layer]
        torch.testing.assert_close(cache["resid_post", layer], whole, rtol=1e-4, atol=1e-4)


def test_blocks_whose_stream_is_no_text_by_position() -> None:
    lens = lens_of("xlnet")
    assert lens.why_absent("hook_embed") == "its embedding puts out tokens before texts"
    assert "hand on [2, 1, 64]" in str(lens.why_absent("blocks.0.hook_resid_pre"))


def test_two_streams_have_no_points() -> None:
    """XLNet generates with a second stream, which attends in the same module."""
    lens = lens_of("xlnet")
    with (
        lens.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", nothing)]),
        pytest.raises(interp.UnsupportedModelError, match="attends several times in this call"),
    ):
        lens.generate(tokens(), max_new_tokens=1)


RECURRENT = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2}
REFUSED = [
    (lambda: hf.MambaForCausalLM(hf.MambaConfig(**RECURRENT)), "MambaForCausalLM has no attention"),
    (lambda: hf.RwkvForCausalLM(hf.RwkvConfig(**RECURRENT, attention_hidden_size=64, context_length=64)),
     "RwkvForCausalLM has no attention"),
    (lambda: hf.ReformerModelWithLMHead(
        hf.ReformerConfig(vocab_size=128, hidden_size=64, num_attention_heads=4, attention_head_size=16,
                          feed_forward_size=64, attn_layers=["local", "lsh"], is_decoder=True,
                          axial_pos_shape=[16, 16], axial_pos_embds_dim=[16, 48], max_position_embeddings=256)),
     "ReformerModelWithLMHead has attention that no seam reaches"),
    (lambda: hf.ProphetNetForCausalLM(
        hf.ProphetNetConfig(vocab_size=128, hidden_size=64, num_encoder_layers=2, num_decoder_layers=2,
                            num_encoder_attention_heads=4, num_decoder_attention_heads=4, encoder_ffn_dim=64,
                            decoder_ffn_dim=64, is_encoder_decoder=False, is_decoder=True)),
     "ProphetNetForCausalLM has attention that no seam reaches"),
    (lambda: hf.CpmAntForCausalLM(
        hf.CpmAntConfig(vocab_size=128, hidden_size=64, num_attention_heads=4, dim_head=16, dim_ff=64,
                        num_hidden_layers=2, prompt_length=8)), "attends to 15 keys where there are 7 tokens"),
    (lambda: hf.BigBirdForCausalLM(hf.BigBirdConfig(**BERT, attention_type="block_sparse")), "original_full"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "says"), REFUSED)
def test_attention_that_is_not_there_or_not_reached(build: Any, says: str) -> None:
    with pytest.raises(interp.UnsupportedModelError, match=says):
        interp.load(build().eval())


def test_big_bird_in_the_mode_that_attends_to_all() -> None:
    lens = interp.load(hf.BigBirdForCausalLM(hf.BigBirdConfig(**BERT, attention_type="original_full")).eval())
    assert lens.run_with_cache(tokens(), names_filter="blocks.0.attn.hook_pattern")[1]["pattern", 0].shape[-1] == 12


def test_axes_of_an_einsum() -> None:
    assert axes_of("bnij,jbnd->ibnd") == (1, 0, 2, 3)
    assert axes_of("bhqk,bhkd->bhqd") == (0, 2, 1, 3)
    assert axes_of("bhqk,bhkd->bqhd") == (0, 1, 2, 3)
    assert axes_of("bhqk,bhkd->bqd") is None
