"""Fine-tuning: only keys and values move, by the gradient of the label's loss, and all comes back bit for bit."""

from __future__ import annotations

from functools import cache
from math import inf

import pytest
import torch

from interp import Lens
from interp.errors import InterpError
from interp.icl.language.fine_tuning import DivergedError, choose_learning_rate, fine_tuned, label_loss
from interp.icl.language.key_value_weights import key_value_weights
from interp.icl.language.readings import next_token_logits
from tests.icl.language.test_label_tasks import TOY
from tests.models import NAMES, tiny, tokenizer

FUSED = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}


@cache
def lens(name: str) -> Lens:
    return Lens(tiny(name), tokenizer(), name)


def draw(demos: int = 4, queries: int = 5, held_out: int = 6):
    return TOY.draw(tokenizer(), demos, queries, held_out, seed=2)


def copies(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_only_key_and_value_projections_move_and_everything_comes_back(name):
    model = lens(name).model
    before = copies(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    with fine_tuned(lens(name), draw(), 0.05):
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        queries_before, queries_after = query_rows(name, before), query_rows(name, dict(model.named_parameters()))
    wanted = FUSED.get(name)
    expected = {n for n in before if (wanted or "k_proj") in n or (wanted or "v_proj") in n}
    assert moved <= expected  # a bias that all keys share has no gradient
    assert {n for n in expected if n.endswith("weight")} <= moved
    for a, b in zip(queries_before, queries_after, strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


def query_rows(name: str, weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What of a fused weight makes queries, by the modelling files' own layout."""
    fused = [w.detach().clone() for n, w in weights.items() if FUSED.get(name, "no such") in n]
    if name == "gpt2":  # Conv1D: [in, q k v]
        return [w[..., :64] for w in fused]
    if name == "gpt_neox":  # head by head: q k v of 8 channels each
        return [w.view(8, 3, 8, -1)[:, 0] for w in fused]
    return [w[:64] for w in fused]  # phi3: [q k v, in]


def test_masks_of_fused_weights_cover_all_that_makes_keys_and_values():
    for name, share in (("gpt2", 2 / 3), ("gpt_neox", 2 / 3), ("phi3", 2 * 16 / (64 + 2 * 16))):
        found = key_value_weights(lens(name))
        for weight in found:
            assert weight.mask is not None
            assert float(weight.mask.float().mean()) == pytest.approx(share), weight.name
    assert all(weight.mask is None for weight in key_value_weights(lens("llama")))


def test_one_step_is_the_gradient_of_the_labels_cross_entropy():
    model, prompts, lr = lens("llama").model, draw(demos=1), 0.1
    (demo,) = prompts.demos
    tokens = torch.tensor([[*prompts.start, *demo.prompt]])
    loss = torch.nn.functional.cross_entropy(model(tokens).logits[:, -1], torch.tensor([demo.label]))
    names = [n for n, _ in model.named_parameters() if "k_proj" in n or "v_proj" in n]
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, [parameters[n] for n in names])
    expected = {n: parameters[n].detach() - lr * g for n, g in zip(names, gradients, strict=True)}
    with fine_tuned(lens("llama"), prompts, lr) as training:
        for n in names:
            torch.testing.assert_close(parameters[n].detach(), expected[n], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(training.losses, loss.detach()[None], rtol=1e-5, atol=1e-6)


def test_layer_causal_steps_are_those_of_layers_on_their_own():
    """Layer by layer: its input is a constant, its loss is read out from its own output."""
    model, prompts, lr = lens("llama").model, draw(demos=1), 0.1
    (demo,) = prompts.demos
    tokens = torch.tensor([[*prompts.start, *demo.prompt]])
    parameters, label = dict(model.named_parameters()), torch.tensor([demo.label])
    expected = {}
    for layer in range(3):
        out = {}
        hook = model.model.layers[layer].register_forward_hook(lambda m, a, o, out=out: out.update(o=o))
        before = model.model.layers[layer].register_forward_pre_hook(lambda m, a: (a[0].detach(), *a[1:]))
        model(tokens)
        hook.remove()
        before.remove()
        resid = out["o"][0] if isinstance(out["o"], tuple) else out["o"]
        read_out = model.lm_head(model.model.norm(resid[:, -1]))
        loss = torch.nn.functional.cross_entropy(read_out, label)
        names = [f"model.layers.{layer}.self_attn.{x}_proj.weight" for x in "kv"]
        gradients = torch.autograd.grad(loss, [parameters[n] for n in names])
        expected |= {n: parameters[n].detach() - lr * g for n, g in zip(names, gradients, strict=True)}
    with fine_tuned(lens("llama"), prompts, lr, "layer_causal"):
        for n, value in expected.items():
            torch.testing.assert_close(parameters[n].detach(), value, rtol=1e-5, atol=1e-7)


def test_demonstrations_are_taken_in_order_one_by_one():
    prompts = draw(demos=3)
    with fine_tuned(lens("llama"), prompts, 0.1) as forwards:
        pass
    with fine_tuned(lens("llama"), prompts.in_order([2, 1, 0]), 0.1) as backwards:
        pass
    alone = []
    for i in range(3):
        with fine_tuned(lens("llama"), prompts.in_order([i, *(j for j in range(3) if j != i)]), 0.1) as first:
            alone.append(first.losses[0])
    assert forwards.losses[0] == alone[0]
    assert backwards.losses[0] == alone[2]
    assert forwards.losses[1] != alone[1]  # one step was made before


def test_queries_on_record_are_those_of_the_model_before_the_step():
    model, prompts = lens("llama").model, draw(demos=2)
    tokens = torch.tensor([[*prompts.start, *prompts.demos[0].prompt, prompts.demos[0].label]])
    _, cache = lens("llama").run_with_cache(tokens, names_filter=lambda n: n.endswith("hook_rot_q"))
    expected = torch.stack([cache[f"blocks.{layer}.attn.hook_rot_q"][0] for layer in range(3)])
    expected = expected[:, len(prompts.start) + 1 :].flatten(2) * model.config.head_dim**-0.5
    with fine_tuned(lens("llama"), prompts, 0.1) as training:
        pass
    torch.testing.assert_close(training.queries[0], expected)
    assert training.queries[1].shape == expected.shape


def test_a_rate_of_zero_changes_nothing():
    prompts = draw()
    bare = next_token_logits(lens("llama"), prompts, prompts.queries, demos=False)
    for recipe in ("sgd", "layer_causal"):
        with fine_tuned(lens("llama"), prompts, 0.0, recipe):
            assert torch.equal(next_token_logits(lens("llama"), prompts, prompts.queries, demos=False), bare)


@pytest.mark.parametrize("when", ["training", "the block"])
def test_weights_come_back_when_something_fails(when):
    model = lens("llama").model
    before = copies(model)
    if when == "training":
        with pytest.raises(DivergedError, match="diverged at demonstration"), fine_tuned(lens("llama"), draw(8), inf):
            pass
    else:
        with pytest.raises(RuntimeError, match="mine"), fine_tuned(lens("llama"), draw(), 0.1):
            raise RuntimeError("mine")
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_last_step_to_infinity_is_noticed():
    with (
        pytest.raises(DivergedError, match="diverged at its last demonstration at lr=inf"),
        fine_tuned(lens("llama"), draw(demos=1), inf),
    ):
        pass


def test_the_learning_rate_with_the_least_held_out_loss_is_chosen():
    prompts = draw(demos=8, held_out=12)
    best, losses = choose_learning_rate(lens("llama"), prompts, grid=(0.0, 1e-3, 1e-2, inf))
    assert losses[inf] == inf
    assert losses[best] == min(losses.values())
    bare = next_token_logits(lens("llama"), prompts, prompts.held_out, demos=False)
    assert losses[0.0] == label_loss(bare, prompts, prompts.held_out)
    with pytest.raises(InterpError, match="every learning rate"):
        choose_learning_rate(lens("llama"), prompts, grid=(inf,))
    with pytest.raises(InterpError, match="held_out"):
        choose_learning_rate(lens("llama"), draw(held_out=0))
    with pytest.raises(InterpError, match="the grid is empty"):
        choose_learning_rate(lens("llama"), prompts, grid=())
    with pytest.raises(InterpError, match="one of sgd, layer_causal, not 'adam'"):
        choose_learning_rate(lens("llama"), prompts, "adam")


def test_what_cannot_be_trained_is_refused():
    with (
        pytest.raises(InterpError, match="one of sgd, layer_causal, not 'adam'"),
        fine_tuned(lens("llama"), draw(), 0.1, "adam"),
    ):
        pass
    half = Lens(tiny("llama").to(torch.bfloat16), tokenizer(), "half")
    with pytest.raises(InterpError, match=r"bfloat16.*dtype=torch.float32"), fine_tuned(half, draw(), 0.1):
        pass


def test_only_a_lens_knows_its_weights():
    with pytest.raises(InterpError, match="load the model itself instead of a Identity"):
        key_value_weights(torch.nn.Identity())


def test_a_projection_shared_with_queries_is_refused():
    model = tiny("llama")
    for layer in model.model.layers:
        layer.self_attn.k_proj.weight = torch.nn.Parameter(layer.self_attn.q_proj.weight[:16].detach().clone())
        attention = layer.self_attn
        attention.k_proj.register_forward_hook(lambda m, a, out, q=attention.q_proj: out + q(a[0])[..., :16])
    with pytest.raises(InterpError, match="makes queries with the same numbers"):
        key_value_weights(Lens(model, tokenizer(), "tied"))
