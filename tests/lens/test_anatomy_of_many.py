"""What a Lens finds in models of many constructions: heads to logits, keys, caches, unequal layers, and refusals."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaAttention

import interp
from interp.cache.kinds import kinds
from interp.lens.head import logit_map
from interp.lens.trying import some_tokens
from interp.lens.unrotated import rotation_of
from interp.lens.writers import ModuleCall, writers
from interp.results.ragged import stacked
from interp.seam.call import AttentionCall
from tests.lens.many import by_hand, ids, kept, lens_of, logits_with, model_of

Tensor = torch.Tensor


# from the end to logits


@pytest.mark.parametrize(("kind", "family", "normed"), [
    ("roberta", "causal", False),  # a layer, an activation and a norm before the unembedding; blocks end in a norm
    ("modernbert-decoder", "causal", True),
    ("bert", "causal", False),
    ("electra", "masked", False),
    ("gemma2", "causal", True),  # softcap
    ("cohere", "causal", True),  # times a constant
    ("granite", "causal", True),  # divided by one
    ("chameleon", "vl", True),  # columns of image tokens are ruled out
])  # fmt: skip
def test_the_end_of_the_residual_stream_reads_out_to_the_models_logits(kind: str, family: str, normed: bool) -> None:
    lens = lens_of(kind, family)
    last = f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    logits, cache = lens.run_with_cache(ids(), names_filter=last)
    assert (lens.anatomy.final_norm is not None) == normed
    assert torch.equal(lens.unembed(lens.normalized(cache[last])), logits)
    assert torch.equal(logits, lens.model(ids(), use_cache=False).logits)


def raw() -> Tensor:
    return torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("made", "softcap"), [
    (lambda x: x, None),
    (lambda x: x, 30.0),  # a config may name a cap that the model does not apply
    (lambda x: x * 0.0625, None),
    (lambda x: torch.tanh(x / 3) * 3, 3.0),
    (lambda x: torch.tanh(0.25 * x / 3) * 3, 3.0),
])  # fmt: skip
def test_maps_to_logits(made: object, softcap: float | None) -> None:
    found = logit_map(raw(), made(raw()), softcap)  # type: ignore[operator]
    assert found is not None
    other = 2 * raw()  # it holds for what it was not fitted on
    torch.testing.assert_close(found(other), made(other))  # type: ignore[operator]


def test_columns_that_are_ruled_out_stay_out() -> None:
    lowest = torch.finfo(torch.float32).min
    logits = 0.5 * raw()
    logits[..., [3, 7]] = lowest
    found = logit_map(raw(), logits, None)
    assert found is not None
    assert torch.equal((found(-raw()) == lowest)[0, 0].nonzero()[:, 0], torch.tensor([3, 7]))
    assert bool((found(raw()) > lowest)[..., [0, 1, 2, 4]].all())


@pytest.mark.parametrize("made", [lambda x: x.square(), lambda x: x + 1, lambda x: x.flip(-1)])
def test_a_map_that_is_none_of_these_is_unknown(made: object) -> None:
    assert logit_map(raw(), made(raw()), 5.0) is None  # type: ignore[operator]


# what blocks write


def made_block(scale: float = 1.0, mlps: int = 1, middle: bool = True) -> tuple[list[ModuleCall], Tensor, Tensor]:
    """Calls of a block whose mixer and MLPs add random vectors, its input and its output."""
    random = torch.Generator().manual_seed(0)
    pre, u, *ms = (torch.randn(1, 2, 8, generator=random) for _ in range(2 + mlps))
    mid = pre + scale * u
    calls = [ModuleCall("b.mix.o", pre, u, {}), ModuleCall("b.mix", pre, u, {})]
    calls += [ModuleCall(f"b.mlp{i}", mid if middle else pre, m, {}) for i, m in enumerate(ms)]
    return calls, pre, mid + scale * sum(ms)


@pytest.mark.parametrize("scale", [1.0, 0.22, 3.0])
def test_writers_of_a_block_with_any_constant(scale: float) -> None:
    calls, pre, post = made_block(scale)
    found = writers(calls, pre, post, "b.mix", 1.0)
    assert found.mixer is not None
    assert found.mlp is not None
    assert (found.mixer.name, found.mlp.name) == ("b.mix", "b.mlp0")
    assert (found.mixer.scale, found.mlp.scale) == (pytest.approx(scale), pytest.approx(scale))
    assert found.complete
    assert not any((found.parallel, found.alone, found.rest))


def test_other_blocks_are_told_apart() -> None:
    calls, pre, post = made_block(mlps=2)
    assert (both := writers(calls, pre, post, "b.mix", 1.0)).rest
    assert both.complete
    calls, pre, post = made_block(mlps=0)
    assert writers(calls, pre, post, "b.mix", 1.0).alone
    calls, pre, post = made_block(middle=False)
    assert writers(calls, pre, post, "b.mix", 1.0).parallel
    calls, pre, post = made_block(mlps=3)
    assert not writers(calls, pre, post, "b.mix", 1.0).complete
    several = writers(calls, pre[None], post[None], "b.mix", 1.0)  # Gemma 3n's blocks
    assert not several.one_stream
    assert "not one vector a token" in several.reason


def test_where_norms_follow_sums_the_stream_is_shown_and_nothing_is_said_to_be_added() -> None:
    lens = lens_of("bert")
    assert not lens.anatomy.additive
    cache = kept(lens, "resid_pre", "resid_mid", "resid_post")
    assert torch.equal(cache["blocks.1.hook_resid_pre"], cache["blocks.0.hook_resid_post"])
    norm = "bert.encoder.layer.1.attention.output.LayerNorm"
    edited = logits_with(lens, "blocks.1.hook_resid_mid", lambda x, hook: 2 * x)
    assert torch.equal(edited, by_hand(lens, norm, lambda x: 2 * x))
    for name in ("hook_attn_out", "hook_mlp_out"):
        with pytest.raises(interp.UnknownNameError, match="norms follow its sums"):
            lens.run_with_cache(ids(), names_filter=f"blocks.0.{name}")


def test_several_streams_have_attention_points_only() -> None:
    lens = lens_of("gemma3n_text")
    assert not any("resid" in name for name in lens.hook_dict)
    with pytest.raises(interp.UnknownNameError, match="not one vector a token"):
        lens.run_with_cache(ids(), names_filter="blocks.0.hook_resid_pre")
    with pytest.raises(interp.InterpError, match="logit_lens"):
        interp.probe(lens, ids(30)[0], "logit_lens")
    assert interp.probe(lens, ids(30)[0], "attention_rank")["attention_rank"]["layer"].size == lens.cfg.n_layers


# layers that differ


def test_arrays_of_unequal_shape_are_filled_up() -> None:
    wide = stacked([np.ones((2, 3)), np.zeros((4, 1))])
    assert wide.shape == (2, 4, 3)
    assert np.isnan(wide[0, 2:]).all()
    assert np.isnan(wide[1, :, 1:]).all()
    assert np.isfinite(wide[0, :2]).all()
    assert (stacked([[1, 2], [3, 4]]).dtype, stacked([[1, 2], [3]]).dtype) == (np.int64, np.float64)
    assert stacked([[1.0, 2.0], [3.0]], "float32").dtype == np.float32


def test_layers_with_other_numbers_of_key_value_heads() -> None:
    lens = lens_of("mimo_v2_flash")
    heads = [block.seen["n_key_value_heads"] for _, block in lens.anatomy.attending]
    assert heads == [2, 4, 2]
    assert lens.cfg.n_key_value_heads == 4
    norms = interp.probe(lens, ids(30)[0], "text_sinks")["text_sinks"]["sink_key_norm"]
    assert np.isfinite(norms.values).sum(-1).tolist() == heads
    cache = kept(lens, "hook_cached_k")
    assert [cache[f"blocks.{i}.attn.hook_cached_k"].shape[2] for i in range(3)] == heads


def test_layers_with_other_head_dims() -> None:
    lens = lens_of("gemma4_text")
    dims = [block.seen["d_head"] for _, block in lens.anatomy.attending]
    assert dims == [16, 32] * 3
    assert lens.cfg.d_head == 32
    energy = interp.probe(lens, ids(30)[0], "channel_imbalance")["channel_imbalance"]["energy"]
    counted = np.isfinite(energy.sel(tensor="key").isel(kv_head=0).transpose("layer", "channel").values).sum(-1)
    assert counted.tolist() == [dims[i] for i in energy["layer"].values]


# what caches hold


@pytest.mark.parametrize(("kind", "types"), [
    ("llama4_text", ("local", "local", "global")),  # chunks
    ("gemma3n_text", ("local", "global", "local", "global", "local", "shared")),
    ("gemma4_text", ("local", "global", "local", "global", "local", "shared")),
    ("jetmoe", ("other",) * 3),  # its cache holds keys of fewer heads than attend
    ("deepseek_v3", ("global",) * 3),  # latents, of which keys are made
    ("deepseek_v32", ("global",) * 3),  # and an index beside them
    ("qwen3_next", ("none", "none", "global")),
    ("falcon_h1", ("global",) * 3),
    ("modernbert-decoder", ("global", "local", "local")),
])  # fmt: skip
def test_what_layers_attend_to_and_keep(kind: str, types: tuple[str, ...]) -> None:
    lens = lens_of(kind)
    assert lens.cfg.attn_types == types
    if "global" not in types:
        with pytest.raises(interp.InterpError, match="no layer whose cache"), lens.apply(interp.SnapKV()):
            pass


@pytest.mark.parametrize("kind", ["llama4_text", "gemma4_text"])
def test_policies_leave_local_and_shared_layers_alone(kind: str) -> None:
    lens, prompt = lens_of(kind), ids(24)
    with pytest.warns(UserWarning, match="stay as they are"), lens.apply(interp.SnapKV(budget=8, window=4)):
        lens.generate(prompt, max_new_tokens=3, min_new_tokens=3)
    assert tuple(lens.last_cache.stored) == lens.cfg.full_attention_layers
    assert {layer.kept for layer in lens.last_cache.stored.values()} == {10}


@pytest.mark.parametrize("opened", [False, True], ids=["packed", "in the open"])
def test_layers_that_share_keys_attend_to_what_a_policy_left_of_them(opened: bool) -> None:
    """Against the bare model with its whole cache and a mask over what went, the same in all layers and heads."""
    lens, prompt = lens_of("gemma4_text"), ids(24)
    assert lens.anatomy.blocks[5].seen["reads"] == 3
    policy = interp.StreamingLLM(budget=8, sinks=2)
    hooks = [("blocks.5.attn.hook_pattern", lambda pattern, hook: None)] if opened else []
    with warnings.catch_warnings(), lens.apply(policy), lens.hooks(fwd_hooks=hooks):
        warnings.filterwarnings("ignore", message=".* stay as they are")
        lens(prompt, use_cache=True)
        cache, full = lens.last_cache, lens.model(prompt, use_cache=True).past_key_values
        for step, token in enumerate(ids(3)[0]):
            column = torch.arange(24 + step + 1)[None, None, None]
            lost = (column >= 2) & (column < 18)
            masks = {
                "full_attention": torch.zeros(lost.shape).masked_fill(lost, torch.finfo(torch.float32).min),
                "sliding_attention": None,
            }
            found = lens(token.view(1, 1), past_key_values=cache, use_cache=True)
            wanted = lens.model(token.view(1, 1), past_key_values=full, attention_mask=masks, use_cache=True).logits
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_chunks_are_seen_in_the_pattern() -> None:
    """The first token of a chunk sees nothing that came before."""
    lens = lens_of("llama4_text")
    patterns, chunk = kept(lens, "hook_pattern"), lens.model.config.attention_chunk_size
    assert float(patterns["blocks.0.attn.hook_pattern"][0, :, chunk:, :chunk].abs().max()) == 0
    assert float(patterns["blocks.2.attn.hook_pattern"][0, :, chunk:, :chunk].max()) > 0


def test_shared_keys_are_seen_where_they_are_read() -> None:
    lens = lens_of("gemma4_text")
    cache = kept(lens, "hook_cached_k")
    assert torch.equal(cache["blocks.3.attn.hook_cached_k"], cache["blocks.5.attn.hook_cached_k"])
    assert not torch.equal(cache["blocks.1.attn.hook_cached_k"], cache["blocks.3.attn.hook_cached_k"])


def test_kinds_of_caches_are_told_by_their_classes() -> None:
    assert kinds(model_of("qwen3_next").config) == ("none", "none", "full")
    assert kinds(model_of("gemma2").config) == ("sliding", "full", "sliding")
    assert set(kinds(model_of("falcon_h1").config)) == {"beside"}
    assert set(kinds(model_of("llama").config)) <= {"full"}


# keys rotated back


@pytest.mark.parametrize(("kind", "reason"), [
    ("hunyuan_v1_dense", "a norm comes after it"),
    ("deepseek_v3", "a rotated and an unrotated part"),
    ("llama4_text", "defines no apply_rotary_pos_emb"),
])  # fmt: skip
def test_keys_that_cannot_be_rotated_back_say_why(kind: str, reason: str) -> None:
    lens = lens_of(kind)
    with pytest.raises(interp.UnknownNameError, match=reason):
        lens.run_with_cache(ids(), names_filter="blocks.0.attn.hook_pre_rot_k")


@pytest.mark.parametrize("kind", ["qwen3_next", "glm4", "phi"])  # a key norm, interleaved halves, part of the channels
def test_keys_rotated_back_are_what_the_projection_made(kind: str) -> None:
    lens = lens_of(kind)
    layer = lens.cfg.attention_layers[0]
    attention = lens.anatomy.blocks[layer].attention
    assert attention is not None
    made: list[Tensor] = []
    module = getattr(attention, "k_norm", attention.k_proj)
    handle = module.register_forward_hook(lambda m, a, out: made.append(out.detach()))
    back = kept(lens, "hook_pre_rot_k")[f"blocks.{layer}.attn.hook_pre_rot_k"]
    handle.remove()
    torch.testing.assert_close(made[0].reshape(back.shape), back, rtol=1e-4, atol=1e-5)


def test_keys_that_no_module_made_are_not_rotated_back() -> None:
    attention, random = model_of("llama").model.layers[0].self_attn, torch.Generator().manual_seed(0)
    k = torch.randn(1, 2, 5, 16, generator=random)
    angle = torch.randn(1, 5, 8, generator=random).repeat(1, 1, 2)
    found = rotation_of(attention, k, (angle.cos(), angle.sin()), [torch.randn(1, 5, 32, generator=random)])
    assert isinstance(found, str)
    assert "no output of the layer's key projection" in found
    assert rotation_of(attention, k, None, []) == "keys are not rotated"


# keywords of the attention


def call(own: object, **rest: object) -> AttentionCall:
    x = torch.randn(1, 4, 5, 16)
    module = LlamaAttention(model_of("llama").config, 0)
    return AttentionCall(module, x, x[:, :2], x[:, :2], None, None, rest, "sdpa", own)  # type: ignore[arg-type]


def test_keywords_that_nobody_reads_do_no_harm() -> None:
    lens = lens_of("llama")
    logits, cache = lens.run_with_cache(ids(), names_filter=lambda n: n.endswith("hook_pattern"), logits_to_keep=1)
    assert logits.shape[1] == 1
    assert torch.equal(cache["pattern", 0], kept(lens, "hook_pattern")["blocks.0.attn.hook_pattern"])
    call(sdpa_attention_forward, logits_to_keep=1, output_router_logits=True, anything=3).refuse_unknown()


def test_keywords_that_matter_are_refused() -> None:
    def somebodys(module: object, q: Tensor, k: Tensor, v: Tensor, mask: object, **rest: object) -> None:
        raise AssertionError("it is asked for its names only")

    def of_transformers(module: object, q: Tensor, position_bias: Tensor | None = None, **rest: object) -> None:
        raise AssertionError("it is asked for its names only")

    of_transformers.__module__ = "transformers.integrations.of_a_test"
    for own in (somebodys, of_transformers):
        with pytest.raises(interp.InterpError, match="passes position_bias to its attention"):
            call(own, position_bias=torch.ones(1)).maths()
    call(of_transformers, logits_to_keep=1).refuse_unknown()
    with pytest.raises(interp.InterpError, match="passes logits_to_keep"):  # it could hand it to another
        call(somebodys, logits_to_keep=1).refuse_unknown()
    call(of_transformers, position_bias=None).refuse_unknown()


# refusals


@pytest.mark.parametrize(("kind", "family", "says"), [
    ("diffllama", "causal", "attends 2 times in one pass"),
    ("deepseek_v4", "causal", "attends to 8 keys where there are 7 tokens, so a column of its attention is no token"),
    ("pix2struct", "vl", "does not run on text tokens alone"),
    ("vision-encoder-decoder", "vl", "does not run on text tokens alone"),
    ("musicgen", "causal", "does not run on text tokens alone"),
    ("longcat_flash", "causal", "has 2 attention modules"),
    ("hrm_text", "causal", "in 2 lists of layers"),
    ("albert", "masked", "attends 3 times in one pass"),
])  # fmt: skip
def test_models_that_are_refused(kind: str, family: str, says: str) -> None:
    with pytest.raises(interp.UnsupportedModelError, match=says) as caught:
        interp.load(model_of(kind, family))
    assert "\n" not in str(caught.value)


def test_an_encoder_is_read_and_does_not_generate() -> None:
    lens = lens_of("bert", "masked")
    assert torch.equal(logits_with(lens, "blocks.0.attn.hook_z", lambda z, hook: None), lens.model(ids()).logits)
    with pytest.raises(interp.InterpError, match="does not generate text"):
        lens.generate(ids(), max_new_tokens=2)


def test_tokens_to_try_are_of_the_models_vocabulary() -> None:
    tried = some_tokens(model_of("llama"), 14)
    assert len(set(tried.tolist())) == 14
    assert int(tried.max()) < 128
    config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(vocab_size=30))
    tables = SimpleNamespace(get_input_embeddings=torch.nn.ModuleList, config=config, device="cpu")
    assert int(some_tokens(tables, 4).max()) < 30
