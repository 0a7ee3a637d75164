"""A model that changes after its Lens was made: results and `cfg` are those of a Lens made now."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.lens import staying_current
from tests.models import shared, tiny, tokenizer, tokens


class LowRank(nn.Module):
    """A linear layer with an adapter beside it, as peft puts one in the layer's place."""

    def __init__(self, base: Any, strength: float = 1.0) -> None:
        super().__init__()
        self.base_layer = base
        torch.manual_seed(3)
        wide, out = base.weight.shape if hasattr(base, "nf") else reversed(base.weight.shape)  # GPT-2 transposes
        self.down = nn.Linear(wide, 4, bias=False)
        self.up = nn.Linear(4, out, bias=False)
        self.strength = strength
        self.requires_grad_(False)

    @property
    def weight(self) -> Any:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base_layer(x) + self.strength * self.up(self.down(x))
        return out


class Bottleneck(nn.Module):
    """An adapter behind a whole part of the block."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.more = part, nn.Linear(64, 64, bias=False).requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.part(*args, **kwargs)
        return out + self.more(out)


def adapt(model: Any, name: str, wrap: Callable[[Any], nn.Module] = LowRank) -> None:
    for path in [path for path, _ in model.named_modules() if path.rpartition(".")[2] == name]:
        parent = model.get_submodule(path.rpartition(".")[0])
        setattr(parent, name, wrap(getattr(parent, name)))


def other_layer(model: Any) -> None:
    model.model.layers[1] = tiny("llama").model.layers[2]
    model.model.layers[1].self_attn.layer_idx = 1


def new_settings(model: Any) -> None:
    for layer in model.model.layers:
        layer.residual_multiplier = 0.5
    model.config.residual_multiplier = 0.5


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "adapter at o_proj": ("llama", lambda m: adapt(m, "o_proj")),
    "adapter at q_proj": ("llama", lambda m: adapt(m, "q_proj")),
    "adapter at k_proj": ("qwen3", lambda m: adapt(m, "k_proj")),
    "adapter at down_proj": ("gemma2", lambda m: adapt(m, "down_proj")),
    "adapter at GPT-2's c_proj": ("gpt2", lambda m: adapt(m, "c_proj")),
    "adapter at a dense": ("gpt_neox", lambda m: adapt(m, "dense")),
    "adapter at the head": ("llama", lambda m: adapt(m, "lm_head")),
    "adapter behind the MLP": ("llama", lambda m: adapt(m, "mlp", Bottleneck)),
    "another layer": ("llama", other_layer),
    "a layer less": ("llama", lambda m: setattr(m.model, "layers", m.model.layers[:2])),
    "a norm": ("llama", lambda m: setattr(m.model, "norm", nn.LayerNorm(64).requires_grad_(False))),
    "dtype": ("llama", lambda m: m.to(torch.float64)),
    "half": ("qwen3", lambda m: m.to(torch.bfloat16)),
    "eager attention": ("llama", lambda m: m.set_attn_implementation("eager")),
    "eager attention, windows": ("gemma3", lambda m: m.set_attn_implementation("eager")),
    "a larger vocabulary": ("llama", lambda m: m.resize_token_embeddings(140, mean_resizing=False)),
    "a smaller vocabulary": ("gpt2", lambda m: m.resize_token_embeddings(120, mean_resizing=False)),
    "a setting": ("granite", new_settings),
    "a logit scale": ("cohere", lambda m: setattr(m, "logit_scale", 0.5)),
}
IDS = tokens(1, 12) % 100 + 4


def facts(lens: Any) -> dict[str, Any]:
    """What a lens tells of its model, in ways that use all of its parts."""
    with torch.no_grad():
        logits, cache = lens.run_with_cache(IDS)
        z = cache["z", 1]
        return {
            "cfg": lens.cfg,
            "points": list(lens.hook_dict),
            "absent": lens.absent,
            "logits": logits,
            **{name: cache[name] for name in cache},
            "contributions": lens.head_contributions(1, z),
            "norms": lens.output_norms(1),
            "unembedded": lens.unembed(cache["ln_final.hook_normalized"]),
            "half": lens.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: value * 0.5)]),
            "pattern": lens.run_with_cache(IDS, names_filter="blocks.0.attn.hook_pattern")[1]["pattern", 0],
            "score": lens.score(IDS, IDS),
        }


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_seen(what: str) -> None:
    kind, change = CHANGES[what]
    model = tiny(kind)
    lens = interp.load(model)
    before = facts(lens)
    change(model)
    now = facts(interp.load(model))
    if what in ("dtype", "half"):  # the parts were found in float32, and stay: in others some are too blurred to find
        assert_same({name: facts(lens)[name] for name in ("cfg", "logits", "score", "norms", "half")},
                    {name: now[name] for name in ("cfg", "logits", "score", "norms", "half")})  # fmt: skip
    else:
        assert_same(facts(lens), now)
    assert any(
        not torch.equal(value.double(), old.double()) if isinstance(value, torch.Tensor) and value.shape == old.shape
        else not isinstance(value, torch.Tensor) and value != old
        for value, old in ((value, before.get(name, value)) for name, value in facts(lens).items())
    ), "the change changed nothing, so this test cannot fail"  # fmt: skip


@pytest.mark.parametrize("what", ["adapter at o_proj", "dtype", "a larger vocabulary", "eager attention"])
def test_cfg_and_probes_are_right_before_any_call(what: str) -> None:
    kind, change = CHANGES[what]
    model = tiny(kind)
    lens = interp.load(model, tokenizer())
    change(model)
    now = interp.load(model, tokenizer())
    assert lens.cfg == now.cfg
    for asked in ("logit_lens", "text_sinks") if what != "dtype" else ("text_sinks",):
        found, wanted = (interp.probe(x, "w4 w5 w6 w7", [asked])[asked] for x in (lens, now))
        for name in wanted.data_vars:
            np.testing.assert_array_equal(found[name].values, wanted[name].values)


def test_heads_add_up_with_an_adapter_in_place() -> None:
    model = tiny("llama")
    lens = interp.load(model)
    adapt(model, "o_proj")
    with torch.no_grad():
        _, cache = lens.run_with_cache(IDS)
        for layer in range(3):
            heads = lens.head_contributions(layer, cache["z", layer]).sum(0)
            torch.testing.assert_close(heads, cache["attn_out", layer][0, -1], rtol=1e-4, atol=1e-4)


def test_tokens_of_a_larger_vocabulary_are_read() -> None:
    model = tiny("llama")
    lens = interp.load(model)
    with pytest.raises(interp.InterpError, match="vocabulary of 128"):
        lens(torch.tensor([[130]]))
    model.resize_token_embeddings(140, mean_resizing=False)
    assert lens(torch.tensor([[130]])).shape[-1] == lens.cfg.d_vocab == 140


def test_hooks_stay_on_their_points() -> None:
    model = tiny("llama")
    lens, seen = interp.load(model), []
    lens.add_hook("blocks.1.attn.hook_z", lambda value, hook: seen.append(hook.name))
    adapt(model, "o_proj")
    lens(IDS)
    assert seen == ["blocks.1.attn.hook_z"]
    lens.reset_hooks()
    lens(IDS)
    assert len(seen) == 1


def test_a_hooked_point_that_is_gone_is_told() -> None:
    model = tiny("llama")
    lens = interp.load(model)
    lens.add_hook("blocks.2.attn.hook_z", lambda value, hook: None)
    model.model.layers = model.model.layers[:2]
    with pytest.raises(interp.InterpError, match=r"blocks\.2\.attn\.hook_z is hooked and gone"):
        lens(IDS)


def test_interventions_act_on_the_model_as_it_is() -> None:
    model = tiny("llama")
    lens, policy = interp.load(model), interp.ThinK(ratio=0.5, window=4, recent=4)
    adapt(model, "o_proj")
    model.to(torch.float64)
    now = interp.load(copy.deepcopy(model))
    for apply in (lens, now):
        with apply.apply(policy | interp.KnockOut(keys=0)):
            apply.generate(IDS, max_new_tokens=3, min_new_tokens=3)
    assert lens.last_cache.nbytes() == now.last_cache.nbytes()


def test_a_forward_function_of_ones_own_is_the_users_affair() -> None:
    """Skipping a layer by hand is an experiment, and the layer is still where it was."""
    model = tiny("llama")
    lens = interp.load(model)
    model.model.layers[2].forward = lambda hidden_states, *args, **kwargs: hidden_states
    _, cache = lens.run_with_cache(IDS, names_filter=["blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"])
    assert torch.equal(cache["resid_pre", 2], cache["resid_post", 2])


def test_nothing_is_read_again_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gpt2")
    lens = interp.load(model)
    monkeypatch.setattr(staying_current, "dissect", lambda model: pytest.fail("taken apart again"))
    lens.generate(IDS, max_new_tokens=2)
    model.train()
    model.requires_grad_(False)
    lens.run_with_cache(IDS)
    with lens.apply(interp.H2O(budget=8)):
        lens.score(IDS, IDS)
    model.eval()
    model.to(torch.float64)  # the parts are the same
    assert lens.cfg.dtype == "float64"


def test_looking_takes_little_time() -> None:
    """Thirty layers in well under a millisecond, where the machine has nothing else to do; here with some room."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 32}
    lens = interp.load(LlamaForCausalLM(LlamaConfig(num_hidden_layers=30, **shape)))
    took = []
    for _ in range(50):
        began = time.perf_counter()
        lens._look()
        took.append(time.perf_counter() - began)
    assert min(took) < 1e-3


@pytest.mark.parametrize("where", ["all", "one weight"])
def test_weights_without_numbers(where: str) -> None:
    model = tiny("llama")
    lens = interp.load(model)
    if where == "all":
        model.to("meta")
    else:
        model.model.layers[1].mlp.up_proj = nn.Linear(64, 128, bias=False, device="meta")
    for load in (lambda: interp.load(model), lambda: lens(IDS), lambda: lens.cfg):
        with pytest.raises(interp.UnsupportedModelError, match="meta device"):
            load()


@pytest.mark.parametrize("how", ["forward", "in place", "a layer", "a layer's forward"])
def test_code_compiled_in_place_passes_hooks_by(how: str) -> None:
    model = tiny("llama")
    lens, layer = interp.load(model), model.model.layers[1]
    if how == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    elif how == "a layer":
        model.model.layers[1] = torch.compile(layer, backend="eager")
    else:
        layer.forward = torch.compile(layer.forward, backend="eager")
    for load in (lambda: interp.load(model), lambda: lens(IDS)):
        with pytest.raises(interp.UnsupportedModelError, match="is compiled"):
            load()


def test_a_shared_model_is_left_alone() -> None:
    model = shared("llama")
    names = [name for name, _ in model.named_modules()]
    interp.load(model)(IDS)
    assert [name for name, _ in model.named_modules()] == names
