"""Methods and weights that a TransformerLens user knows: a bridge's numbers, or a sentence with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp import InterpError
from tests.models import shared, tokenizer, tokens
from tests.seam.test_bridge import bridged

KINDS = ("llama", "gpt2", "qwen3", "gpt_neox", "granite", "olmo2")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def caches(kind: str) -> tuple[Any, Any, Any, Any]:
    lens, bridge = interp.load(shared(kind), tokenizer()), bridged(kind)
    _, ours = lens.run_with_cache(tokens())
    _, theirs = bridge.run_with_cache(tokens())
    return lens, bridge, ours, theirs


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_stream_is_taken_apart_as_by_a_bridge(kind: str) -> None:
    _, _, ours, theirs = caches(kind)
    close(ours.accumulated_resid(), theirs.accumulated_resid())
    close(ours.accumulated_resid(apply_ln=True), theirs.accumulated_resid(apply_ln=True))
    close(ours.decompose_resid(), theirs.decompose_resid())
    close(ours.stack_head_results(), theirs.stack_head_results())
    last: dict[str, Any] = {"incl_remainder": True, "pos_slice": -1}
    close(ours.stack_head_results(**last), theirs.stack_head_results(**last))
    stack = ours.decompose_resid()
    close(ours.apply_ln_to_stack(stack), theirs.apply_ln_to_stack(stack))
    newest = stack[..., -1, :]
    close(ours.apply_ln_to_stack(newest, pos_slice=-1), theirs.apply_ln_to_stack(newest, pos_slice=-1))
    answers = torch.tensor([5, 9])
    close(ours.logit_attrs(stack, answers), theirs.logit_attrs(stack, answers))
    whole = ours.get_full_resid_decomposition(expand_neurons=False)
    close(whole, theirs.get_full_resid_decomposition(expand_neurons=False))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_the_parts_add_up(kind: str) -> None:
    _, _, ours, _ = caches(kind)
    close(ours.get_full_resid_decomposition(expand_neurons=False).sum(0), ours["resid_post", -1])
    close(ours.decompose_resid().sum(0), ours["resid_post", -1])


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_weights_are_a_bridges(kind: str) -> None:
    lens, bridge = interp.load(shared(kind), tokenizer()), bridged(kind)
    for name in ("W_E", "W_U", "W_O"):
        close(getattr(lens, name), getattr(bridge, name))
    for name in ("W_Q", "W_K", "W_V"):
        if kind == "gpt2":
            with pytest.raises(InterpError, match="weights by head are unknown; hook the activations"):
                getattr(lens, name)
            continue
        own = getattr(lens, name)
        heads = lens.cfg.n_heads if name == "W_Q" else lens.cfg.n_key_value_heads
        assert own.shape == (3, heads, 64, lens.cfg.d_head)
    if kind == "llama":
        _, cache = lens.run_with_cache(tokens(), names_filter=lambda n: n.endswith(("hook_v", "hook_resid_pre")))
        normalized = shared(kind).model.layers[1].input_layernorm(cache["resid_pre", 1])
        close(torch.einsum("bpm,hmd->bphd", normalized, lens.W_V[1]), cache["v", 1])


def test_single_tokens() -> None:
    lens = interp.load(shared("llama"), tokenizer())
    assert lens.to_single_token("w9") == 9
    assert lens.to_single_str_token(9) == "w9"
    close(lens.tokens_to_residual_directions("w9"), lens.W_U[:, 9])
    close(lens.tokens_to_residual_directions(torch.tensor([5, 9])), lens.W_U[:, [5, 9]].mT)
    with pytest.raises(InterpError, match="is 2 tokens"):
        lens.to_single_token("w9 w8")


INSTEAD = {
    "hook_q": (lambda lens, cache: lens.run_with_cache(tokens(), names_filter="blocks.0.attn.hook_q"), "hook_rot_q"),
    "hook_result": (lambda lens, cache: lens.add_hook("blocks.1.attn.hook_result", print), "stack_head_results"),
    "cached q": (lambda lens, cache: cache["q", 1], "blocks.1.attn.hook_rot_q"),
    "cached scores": (lambda lens, cache: cache["attn_scores", 1], "names_filter='blocks.1.attn.hook_attn_scores'"),
    "pattern of part of a run": (
        lambda lens, cache: lens.run_with_cache(tokens(), pos_slice=-1)[1]["pattern", 1],
        "names_filter='blocks.1.attn.hook_pattern'",
    ),
    "neurons": (lambda lens, cache: cache.get_full_resid_decomposition(), "expand_neurons=False"),
    "neuron results": (lambda lens, cache: cache.stack_neuron_results(1), "mlp_out|mode='mlp'"),
    "a layer's norm": (lambda lens, cache: cache.accumulated_resid(1, apply_ln=True), "layer=-1"),
    "post": (lambda lens, cache: cache["blocks.0.mlp.hook_post"], "hook_mlp_out"),
    "prepend_bos": (lambda lens, cache: lens(tokens(), prepend_bos=True), "special tokens are kept"),
    "stop_at_layer": (lambda lens, cache: lens(tokens(), stop_at_layer=4), "up to 3"),
    "start_at_layer": (lambda lens, cache: lens(tokens(), start_at_layer=1), "hook_resid_pre"),
    "positions": (lambda lens, cache: lens.W_pos, "hook_resid_pre"),
}


@pytest.mark.parametrize("habit", INSTEAD)
def test_what_a_lens_has_not_says_what_to_do_instead(habit: str) -> None:
    lens = interp.load(shared("llama"), tokenizer())
    _, cache = lens.run_with_cache(tokens())
    do, told = INSTEAD[habit]
    with pytest.raises(InterpError, match=told) as error:
        do(lens, cache)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
