"""The exact identities on real blocks of tiny models, and every number beside them worked out from the pattern."""

from __future__ import annotations

import copy
import math
from functools import cache

import numpy as np
import pytest
import torch

from interp import figures
from interp.errors import InterpError, UnsupportedModelError
from interp.icl.language import head_split, implicit_mlp_update
from interp.icl.language._mlp import LastToken, input_projections, rank_one_update, weight_gradients
from interp.icl.language._prompts import Prompt
from interp.icl.language.identities import split
from interp.lens.bridge import BridgeLens
from interp.lens.lens import Lens
from tests.icl.example_measurements import example_measurements
from tests.models import NAMES, tiny, tokenizer, tokens
from tests.probes.events import random_event
from tests.probes.schema import check_result

DEMOS = [tokens(1, 7, seed=3)[0], tokens(1, 4, seed=5)[0]]
QUERY = tokens(1, 3, seed=4)[0]
DENSE = [name for name in NAMES if name != "gpt_oss"]


@cache
def double(name: str) -> Lens:
    """A Lens in float64, one of each kind."""
    model = tiny(name)
    if name == "gpt_oss":
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    return Lens(model.double())


# Gemma 2 runs its own eager attention here, which takes the softmax in fp32 whatever the dtype.
@pytest.mark.parametrize(("name", "tolerance"), [(n, 1e-6 if n == "gemma2" else 1e-10) for n in NAMES])
def test_the_mixture_is_what_the_model_computes(name, tolerance):
    ds = head_split(double(name), DEMOS, QUERY)
    assert float(ds["identity_error"].max()) <= tolerance
    assert 0 < float(ds["demo_mass"].mean()) < 1


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2", "granite"])
def test_numbers_of_the_split_follow_from_the_pattern(name):
    """Grouped keys, a window of 5, a softcap, learned sinks, no rotation, an own scale."""
    lens = double(name)
    ds = head_split(lens, DEMOS, QUERY)
    prompt = torch.cat([*DEMOS, QUERY])[None]
    point = "rot_q" if lens.cfg.positional_embedding_type == "rotary" else "q"
    names = ["pattern", "v", point, point.replace("q", "k")]
    wanted = [f"blocks.{layer}.attn.hook_{one}" for layer in range(3) for one in names]
    _, cache = lens.run_with_cache(prompt, names_filter=wanted)
    tolerance = {"rel": 1e-5, "abs": 1e-7} if name in ("gemma2", "gpt_oss") else {"rel": 1e-9}
    for layer in range(3):
        pattern, values = cache["pattern", layer][0, :, -1], cache["v", layer][0]
        q, k = cache[point, layer][0, -1], cache[names[3], layer][0]
        for head in range(8):
            p, at = pattern[head], head // (8 // values.shape[1])
            demo, rest = p[:11] @ values[:11, at], p[11:] @ values[11:, at]
            a = float(p[:11].sum())
            out_demo, out_query = demo / a, rest / (1 - a)
            linear = sum((k[j, at] @ q[head]) * values[j, at] for j in range(11) if p[j] > 0)
            expected = {
                "demo_mass": a,
                "first_token_mass": p[0],
                "out_demo_norm": out_demo.norm(),
                "out_query_norm": out_query.norm(),
                "difference_norm": (out_demo - out_query).norm(),
                "shift_norm": (demo + rest - out_query).norm(),
                "linear_norm": linear.norm() * lens_scale(name),
                "linear_cosine": torch.cosine_similarity(linear, out_demo - out_query, dim=0),
            }
            for score, value in expected.items():
                assert float(ds[score][layer, head]) == pytest.approx(float(value), **tolerance), (score, layer, head)


def lens_scale(name: str) -> float:
    return {"granite": 0.3, "gemma2": 2**-0.5}.get(name, 8**-0.5)


def test_a_dense_mask_counts_in_the_split():
    draw = torch.Generator().manual_seed(0)
    mask = (torch.rand(1, 1, 14, 14, generator=draw) < 0.6).tril() | torch.eye(14, dtype=torch.bool)
    event = random_event(14, mask=mask)
    parts = split(event, torch.arange(14) < 9)
    pattern = event.pattern()[0, :, -1]
    values = event.v[0].repeat_interleave(2, 0)
    torch.testing.assert_close(parts["mass"], pattern[:, :9].sum(-1))
    torch.testing.assert_close(parts["out_icl"], torch.einsum("hk,hkd->hd", pattern, values))
    scores = torch.einsum("hd,hkd->hk", event.q[0, :, -1], event.k[0].repeat_interleave(2, 0)) * event.scale
    seen = mask[0, 0, -1] & (torch.arange(14) < 9)
    torch.testing.assert_close(parts["linear"], torch.einsum("hk,hkd->hd", scores * seen, values))


def test_demonstrations_beyond_the_window_leave_no_trace():
    ds = head_split(double("mistral"), DEMOS, tokens(1, 5, seed=4)[0])
    assert float(ds["demo_mass"].max()) == 0.0
    assert float(ds["shift_norm"].max()) == 0.0
    assert ds["linear_cosine"].isnull().all()
    assert float(ds["identity_error"].max()) <= 1e-10
    seen = head_split(double("gemma3"), DEMOS, tokens(1, 5, seed=4)[0])["demo_mass"].mean("head")
    assert (seen.values > 0).tolist() == [False, True, False], "sliding, full, sliding"


def test_special_tokens_belong_to_the_query():
    lens = Lens(tiny("llama").double(), tokenizer())
    texts = [" ".join(f"w{i}" for i in demo.tolist()) for demo in DEMOS]
    ds = head_split(lens, texts, " ".join(f"w{i}" for i in QUERY.tolist()))
    assert ds.attrs["special_tokens"] == 1
    assert ds.attrs["demo_tokens"] == 11
    _, cache = lens.run_with_cache(
        torch.cat([torch.zeros(1, dtype=torch.long), *DEMOS, QUERY])[None], names_filter="blocks.1.attn.hook_pattern"
    )
    torch.testing.assert_close(torch.tensor(ds["demo_mass"].values[1]), cache["pattern", 1][0, :, -1, 1:12].sum(-1))


@pytest.mark.parametrize("name", DENSE)
def test_the_model_with_new_weights_needs_no_demonstrations(name):
    """With W + ΔW in one layer, that layer's MLP writes for the query alone what it wrote after the demonstrations."""
    lens, layer = double(name), 1
    prompt = Prompt.of(lens, DEMOS, QUERY)
    projections = input_projections(lens, prompt.zero_shot)[layer]
    alone, after = (LastToken.of(lens, t, list(projections.values())) for t in (prompt.zero_shot, prompt.in_context))
    changed = Lens(copy.deepcopy(lens.model))
    copies = input_projections(changed, prompt.zero_shot)[layer].values()
    for own, module in zip(projections.values(), copies, strict=True):
        u, r = rank_one_update(own, alone.read[own], after.read[own])
        update = torch.outer(u, r)
        with torch.no_grad():
            module.weight += update if module.weight.shape == update.shape else update.T
        assert int(torch.linalg.matrix_rank(update)) == 1
    now = LastToken.of(changed, prompt.zero_shot, [])
    torch.testing.assert_close(now.written[layer], after.written[layer], rtol=1e-10, atol=1e-10)
    bias = after.beside[layer] - alone.beside[layer]
    _, cache = lens.run_with_cache(prompt.in_context, names_filter=f"blocks.{layer}.hook_resid_post")
    moved = now.beside[layer] + now.written[layer] + bias
    torch.testing.assert_close(moved, cache["resid_post", layer][0, -1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", DENSE)
def test_the_update_is_exact_and_described(name, tmp_path):
    ds = implicit_mlp_update(double(name), DEMOS, QUERY)
    assert float(ds["identity_error"].max()) <= 1e-10
    gated = {"gpt_neox": 1, "gpt2": 1, "phi": 1, "phi3": 1}
    assert ds.sizes["projection"] == gated.get(name, 2)
    assert (abs(ds["gradient_cosine"]).fillna(0) <= ds["gradient_cosine_bound"] + 1e-12).all()
    still = ds["update_norm"] == 0
    assert bool(still.any()) == (name in ("gpt_neox", "phi", "cohere")), "a parallel block's first MLP sees one token"
    assert (ds["gradient_cosine"].isnull() == still).all()
    check_result(ds, tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_numbers_of_the_update_follow_from_the_matrices(name):
    lens = double(name)
    ds = implicit_mlp_update(lens, DEMOS, QUERY)
    prompt = Prompt.of(lens, DEMOS, QUERY)
    modules = list(input_projections(lens, prompt.zero_shot)[1].values())
    alone, after = (LastToken.of(lens, t, modules) for t in (prompt.zero_shot, prompt.in_context))
    losses = [torch.nn.functional.cross_entropy(lens.model(d[None]).logits[0, :-1], d[1:]) for d in DEMOS]
    grads = torch.autograd.grad(sum(losses) / 2, [module.weight for module in modules])
    for i, (module, grad) in enumerate(zip(modules, grads, strict=True)):
        weight, grad = (x.T if name == "gpt2" else x for x in (module.weight.detach(), grad))
        a0, a1 = alone.read[module], after.read[module]
        update = torch.outer(weight @ (a1 - a0), a0) / (a0 @ a0)
        along = grad @ a0 / a0.norm() / grad.norm()
        expected = {
            "update_norm": update.norm(),
            "relative_update": update.norm() / weight.norm(),
            "gradient_norm": grad.norm(),
            "gradient_cosine": -(update * grad).sum() / update.norm() / grad.norm(),
            "gradient_cosine_bound": along.norm(),
            "gradient_cosine_chance": along.norm() / math.sqrt(len(update)),
        }
        for score, value in expected.items():
            assert float(ds[score][1, i]) == pytest.approx(float(value), rel=1e-8), score
    shift = after.written[1] - alone.written[1]
    assert float(ds["mlp_shift_norm"][1]) == pytest.approx(float(shift.norm()), rel=1e-10)
    shift = after.beside[1] - alone.beside[1]
    assert float(ds["residual_shift_norm"][1]) == pytest.approx(float(shift.norm()), rel=1e-10)


def test_chance_is_what_random_updates_reach():
    lens = double("llama")
    ds = implicit_mlp_update(lens, DEMOS, QUERY)
    prompt = Prompt.of(lens, DEMOS, QUERY)
    modules = list(input_projections(lens, prompt.zero_shot)[0].values())[:1]
    a0 = LastToken.of(lens, prompt.zero_shot, modules).read[modules[0]]
    (grad,) = weight_gradients(lens, modules, lambda l: sum(l(t, return_type="loss") for t in prompt.alone) / 2)
    u = torch.randn(4000, len(grad), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cosine = (u @ grad @ a0) / u.norm(dim=-1) / a0.norm() / grad.norm()
    chance = float(ds["gradient_cosine_chance"][0, 0])
    assert float(cosine.square().mean().sqrt()) == pytest.approx(chance, rel=0.05)


def test_frozen_weights_have_gradients_too_and_the_model_keeps_no_trace():
    lens = Lens(tiny("llama").double())
    expected = implicit_mlp_update(lens, DEMOS, QUERY)["gradient_norm"]
    assert all(p.grad is None for p in lens.model.parameters())
    lens.model.requires_grad_(False)
    found = implicit_mlp_update(lens, DEMOS, QUERY)["gradient_norm"]
    torch.testing.assert_close(found.values, expected.values, rtol=1e-10, atol=0)
    assert not any(p.requires_grad or p.grad is not None for p in lens.model.parameters())
    assert not any(module._forward_hooks for module in lens.model.modules())


def test_the_fine_tuning_loss_can_be_the_callers():
    lens = double("llama")
    only_last = implicit_mlp_update(
        lens, DEMOS, QUERY, loss=lambda lens: -lens(DEMOS[0][None])[0, -1].log_softmax(-1)[5]
    )
    grad = torch.autograd.grad(
        -lens.model(DEMOS[0][None]).logits[0, -1].log_softmax(-1)[5], lens.model.model.layers[2].mlp.up_proj.weight
    )[0]
    found = only_last["gradient_norm"].sel(layer=2, projection="up_proj")
    assert float(found) == pytest.approx(float(grad.norm()), rel=1e-9)
    assert only_last.attrs["loss"] == "the caller's own"


def test_the_split_describes_itself(tmp_path):
    check_result(head_split(double("llama"), DEMOS, QUERY), tmp_path)


def test_the_figure_relates_the_shift_to_the_output_without_demonstrations():
    ds = example_measurements(layers=4, heads=3)["head_split"]
    ds["demo_mass"][1, 2], ds["shift_norm"][1, 2], ds["out_query_norm"][1, 2] = 0.5, 3.0, 6.0
    mass, moved, cosine = figures.icl_head_split(ds).data
    assert (mass.z[1, 2], moved.z[1, 2]) == (0.5, 0.5)
    assert np.isnan(cosine.z[0, 0]), "a head that sees no demonstration has no direction"
    assert figures.icl_head_split(ds).layout.title.text == "What 4 demonstrations do to each head"


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda: implicit_mlp_update(double("gpt_oss"), DEMOS, QUERY), UnsupportedModelError, "for dense MLPs"),
        (
            lambda: implicit_mlp_update(double("llama"), DEMOS, QUERY, loss=lambda lens: torch.tensor(1.0)),
            InterpError,
            "the fine-tuning loss carries no gradient",
        ),
        (lambda: implicit_mlp_update(double("llama"), QUERY[:1], QUERY), InterpError, "of one token has no next-token"),
        (
            lambda: input_projections(BridgeLens.__new__(BridgeLens), QUERY[None]),
            UnsupportedModelError,
            "which a TransformerBridge wraps",
        ),
        (lambda: head_split(double("llama"), [], QUERY), InterpError, "needs demonstrations and a query"),
        (lambda: head_split(double("llama"), DEMOS, QUERY[:0]), InterpError, "none of them empty"),
        (lambda: head_split(double("llama"), "w5 w6", QUERY), InterpError, "has no tokenizer"),
        (lambda: head_split(double("llama"), tokens(1, 600)[0], QUERY), InterpError, "603 tokens exceed the context"),
    ],
    ids=["experts", "no gradient", "one token", "bridge", "no demonstrations", "no query", "no tokenizer", "too long"],
)
def test_what_cannot_be_split_is_refused(ask, error, said):
    with pytest.raises(error, match=said):
        ask()
