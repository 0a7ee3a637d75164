"""Nothing is ignored in silence: names, edits, features and misuse each get one clear sentence."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
import transformers as hf
from packaging.version import Version
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import interp
from interp.seam.call import AttentionCall
from interp.seam.masks import same_function
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
    with pytest.raises(interp.InterpError, match="read-only"):
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
    with pytest.raises(interp.InterpError, match="read-only"):
        lens.run_with_hooks(more, past_key_values=cache, use_cache=True, fwd_hooks=[(point, lambda x, hook: x * 2)])


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: hf.MambaForCausalLM(hf.MambaConfig(vocab_size=128, hidden_size=64, num_hidden_layers=2)),
        "has no attention"), (lambda: hf.T5Model(hf.T5Config(vocab_size=128,
        d_model=64, d_ff=64, num_layers=2, num_heads=4)), "no language-model head"), (lambda:
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
    q = torch.zeros(1, 8, 3, 8)
    module, rest = lens.anatomy.blocks[0].attention, {"position_bias": q, "dropout": 0.0}
    call = AttentionCall(module, q, q, q, None, None, rest, "sdpa", lambda *_, **__: (q, None))
    with pytest.raises(interp.UnsupportedModelError, match="position_bias"):
        call.refuse_unknown()


def test_arguments_that_a_model_would_swallow(lens: interp.Lens) -> None:
    for call, says in (
        (lambda: lens(tokens(), start_at_layer=1), "knows no argument start_at_layer"),
        (lambda: lens(tokens(), return_type="logit"), "not 'logit'"),
        (lambda: interp.load(shared("llama"), attn_implementation="eager"), "attn_implementation would be ignored"),
        (lambda: interp.load("demo", revision="main"), "revision would be ignored"),
        (lambda: lens.generate(tokens(), chat=True), "pass a text"),
        (lambda: lens.generate(tokens(), cache_implementation="static"), "no cache_implementation"),
        (lambda: lens.generate(tokens(), max_new_tokens=600), "exceed the context"),
        (lambda: lens(tokens(), attention_mask=torch.ones(2, 5)), r"mask is \[2, 5\]"),
        (lambda: lens(tokens(), return_type="loss", logits_to_keep=1), "logits of all 12 positions"),
        (lambda: lens.run_with_cache(tokens())[1]["resid_post", 3], "no layer 3"),
        (lambda: lens.add_hook("blocks.0.attn.hook_lse", nothing, dir="bwd"), "no gradient"),
    ):
        with pytest.raises(interp.InterpError, match=says):
            call()


@pytest.mark.parametrize("point", ["attn.hook_cached_v", "attn.hook_column_mass"])
def test_read_only_points_refuse_changes_in_place(lens: interp.Lens, point: str) -> None:
    def zero(x: torch.Tensor, hook: object) -> None:
        x.zero_()

    with torch.no_grad(), pytest.raises(interp.InterpError, match="read-only"):
        lens.run_with_hooks(tokens(), fwd_hooks=[(f"blocks.1.{point}", zero)])


@pytest.mark.skipif(Version(hf.__version__) < Version("5.23"), reason="older releases attend once, to wider values")
def test_attention_that_attends_twice_in_a_layer_is_refused_by_name() -> None:
    """Differential attention: a Lens has one set of points for a layer's attention."""
    model = hf.DiffLlamaForCausalLM(hf.DiffLlamaConfig(**SHAPE, num_key_value_heads=2))
    with pytest.raises(interp.UnsupportedModelError, match="attends 2 times in one pass"):
        interp.load(model)


@torch.no_grad()
def test_keys_of_a_static_cache_are_found_where_they_are(lens: interp.Lens) -> None:
    """A static cache holds more columns than tokens: the new keys are in the middle, the rest is not real."""
    cache = hf.StaticCache(config=lens.model.config, max_cache_len=32)
    wanted = [n for n in lens.hook_dict if n.endswith(("hook_rot_k", "key_energy", "column_mass", "pre_rot_k"))]
    _, fixed = lens.run_with_cache(tokens(), past_key_values=cache, use_cache=True, names_filter=wanted)
    _, plain = lens.run_with_cache(tokens(), names_filter=wanted)
    for name in wanted:
        found = fixed[name][..., :12] if name.endswith("column_mass") else fixed[name]
        torch.testing.assert_close(found, plain[name], rtol=1e-5, atol=1e-5)


def test_an_exception_inside_leaves_the_model_as_it_was(lens: interp.Lens) -> None:
    bare = lens.model(tokens()).logits

    def hooks() -> list[object]:  # transformers leaves some of its own where someone asked for hidden states
        return [h for m in lens.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]

    before = hooks()

    def explode(value: object, hook: object) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_pattern", explode)])
    assert lens.model.config._attn_implementation == "sdpa"
    assert hooks() == before
    assert torch.equal(lens.model(tokens()).logits, bare)


def test_names_and_masks_of_the_model_stay_its_own(lens: interp.Lens) -> None:
    """Sparse attention asks for the name, and computes with the mask."""
    model, seen = lens.model, []
    attention = lens.anatomy.blocks[0].attention
    note = attention.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((m.config._attn_implementation, kwargs["attention_mask"])), with_kwargs=True
    )
    padded = torch.ones(2, 12, dtype=torch.long)
    padded[0, :3] = 0
    with note:
        model(tokens(), attention_mask=padded)
        lens.run_with_hooks(tokens(), attention_mask=padded, fwd_hooks=[("blocks.0.attn.hook_z", nothing)])
    (bare_name, bare_mask), (name, mask) = seen
    assert name == bare_name == "sdpa"
    assert torch.equal(mask, bare_mask)


def test_another_model_and_another_thread_go_on_as_they_would(lens: interp.Lens) -> None:
    """What leads to the seam during a call is shared by the process; who is not in the call must not notice."""
    other = tiny("llama")
    bare, inside = other(tokens()).logits, []

    def look(value: object, hook: object) -> None:
        thread = threading.Thread(target=lambda: inside.append(other(tokens()).logits))
        thread.start()
        thread.join()
        inside.append(other(tokens()).logits)

    lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_pattern", look)])
    assert [torch.equal(logits, bare) for logits in inside] == [True, True]


def test_two_calls_that_overlap_leave_the_registry_when_both_have_ended() -> None:
    one, two = interp.load(tiny("llama")), interp.load(tiny("qwen3"))
    bare = two.model(tokens()).logits
    middle, done = threading.Event(), threading.Event()

    def wait(value: object, hook: object) -> None:
        middle.set()
        assert done.wait(30)

    hooks = [("blocks.1.attn.hook_z", wait)]
    first = threading.Thread(target=lambda: one.run_with_hooks(tokens(), fwd_hooks=hooks))
    first.start()
    assert middle.wait(30)
    seen = []
    two.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: seen.append(hook.name))])
    done.set()
    first.join()
    assert seen == ["blocks.1.attn.hook_z"]
    for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        assert not {"sdpa", "eager"} & registry._local_mapping.keys()
    assert torch.equal(two.model(tokens()).logits, bare)


def test_a_users_own_functions_are_called_and_left_in_place(lens: interp.Lens) -> None:
    """Somebody may have put a function of their own behind a name, for attention or for masks."""
    called: list[str] = []

    def noting(name: str, function: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return function(*args, **kwargs)

        return noted

    registries = {"attention": ALL_ATTENTION_FUNCTIONS, "mask": ALL_MASK_ATTENTION_FUNCTIONS}
    own = {kind: noting(kind, registry["sdpa"]) for kind, registry in registries.items()}
    try:
        for kind, registry in registries.items():
            registry["sdpa"] = own[kind]
        lens.model(tokens())
        bare = called.copy()
        lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.0.attn.hook_z", nothing)])
        assert bare
        assert called == [*bare, *bare]
        assert {kind: registry._local_mapping["sdpa"] for kind, registry in registries.items()} == own
    finally:
        for registry in registries.values():
            registry._local_mapping.pop("sdpa", None)


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
